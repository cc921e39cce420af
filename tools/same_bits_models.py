"""Cases of same_bits.py about what is around a chain: kinds of images, defences, attacks, trainings and files."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from same_bits_cases import (
    SEED,
    Cases,
    UserModule,
    autoencoder,
    defined,
    digits,
    normals,
    randomised,
    uniforms,
    value_and_gradient,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastmalade
from fastmalade import (
    ChainConfig,
    DefendedClassifier,
    Defense,
    Purifier,
    attacks,
    data,
    defenses,
    evaluation,
    models,
)


class _Foreign:
    """Images of a library that only the DLPack protocol connects with this one."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __dlpack__(self, **options: Any) -> Any:
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.x.__dlpack_device__()


def kinds_of_images(cases: Cases) -> None:
    """``purify`` of every kind, dtype and layout of images, and of value ranges other than (0, 1)."""
    x, _ = digits(5)
    array = x.numpy()
    colour = uniforms(3, 3, 32, 32)
    grey: dict[str, Any] = {
        "torch": x,
        "torch float64": x.double(),
        "torch float16": x.half(),
        "torch bfloat16": x.bfloat16(),
        "torch uint8": (x * 255).round().byte(),
        "one": x[:1],
        "none": x[:0],
        "uint8": (array * 255).round().astype(np.uint8),
        "float32": array,
        "float64": array.astype(np.float64),
        "float16": array.astype(np.float16),
        "channels last": array.transpose(0, 2, 3, 1),
        "batch of planes": array[:, 0],
        "plane": array[0, 0],
        "strided": np.concatenate([array, array], 3)[..., ::2],
        "dlpack": _Foreign(x),
    }
    for kind, images in grey.items():
        cases.add(f"purify {kind}", fastmalade.purify, images, seed=SEED)
    for threads in (1, 2):
        cases.add(f"settings, threads {threads}", fastmalade.purify, array, seed=1, threads=threads,
                  model="mala-mnist", sample_ids=range(5), n_steps=3, clamp="every_step", decay=0.5)  # fmt: skip
    cases.add("backend", fastmalade.purify, array, seed=1, backend="torch")
    cases.add("defence", fastmalade.purify, array, model="magnet-mnist", seed=1)
    config = ChainConfig(3, 0.3, 0.1)
    table8, module = autoencoder((3, 32, 32), (4, 9)), randomised(UserModule(3))
    for name, r in (("table 8", table8), ("module", module)):
        for value_range in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
            purifier, low = Purifier(r, config, value_range=value_range), value_range[0]
            scaled = colour * (value_range[1] - low) + low
            where = f"{name} {value_range}"
            cases.add(f"{where}: torch", purifier.purify, scaled, seed=2)
            cases.add(f"{where}: float64", purifier.purify, scaled.numpy().astype(np.float64), seed=2)
            cases.add(f"{where}: last", purifier.purify, scaled.numpy().transpose(0, 2, 3, 1), seed=2)
            cases.add(f"{where}: uint8", purifier.purify, (colour * 255).byte(), seed=2)
            cases.add(f"{where}: gradient", value_and_gradient, purifier, scaled, seed=2)
            cases.add(f"{where}: trajectory", purifier.trajectory, scaled, seed=2)


def compiled(cases: Cases) -> None:
    """One purifier under torch's transformations, which take other ways through the operators than a plain call."""
    x = uniforms(3, 3, 8, 8)
    for name, r in (("table 8", autoencoder((3, 8, 8), (4, 9))), ("module", randomised(UserModule(3)))):
        purifier = Purifier(r, ChainConfig(3, 0.3, 0.1, clamp="every_step"))

        def run(images: Tensor, purifier: Purifier = purifier) -> Tensor:
            return purifier(images, seed=7)

        with torch.inference_mode():
            cases.add(f"{name}: inference mode", run, x)
        cases.add(f"{name}: compiled", value_and_gradient, torch.compile(run, backend="aot_eager", fullgraph=True), x)
        cases.add(f"{name}: checkpoint", value_and_gradient, _checkpointed, x, run=run)
    cases.add("module: jvp", torch.func.jvp, run, (x,), (normals(x.shape),))


def _checkpointed(x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    return checkpoint(run, x, use_reentrant=False)


def _small_defenses() -> dict[str, Defense]:
    """Every defence with small networks, for the ways through the code that the shipped settings do not take."""
    one = {"value_range": (-1.0, 1.0)}
    generator, decoder = randomised(defined("GanGenerator", "models")(8, 2)), defined("VaeDecoder", "models")(4, 12)
    found: dict[str, Defense] = {
        "magnet": defenses.MagNet(autoencoder((1, 28, 28), (3, 4)), **one),
        "defense-gan": defenses.DefenseGan(generator, n_steps=5, n_restarts=3, **one),
        "inc": defenses.InvertAndClassify(randomised(decoder), n_steps=5, n_restarts=2, eta=5.0, **one),
        "autoencode": defenses.AutoencodeAndClassify(
            randomised(defined("VaeEncoder", "models")(4, 12)), randomised(decoder), gradient="bpda", **one
        ),
        "dip-inc": defenses.DeepPrior(
            randomised(defined("PriorNetwork", "models")(1, 3, (4, 4), 2)), n_steps=3, gradient="unrolled", **one
        ),
    }
    statistics = {"error_mean": 100.0, "error_std": 8.0, "n_steps": 3}
    networks = {"skip": randomised(defined("SkipDenoiser", "models")(1, 4, 3)), "": autoencoder((1, 28, 28), (3, 4))}
    for variant in ("direct", "A", "B", "C", "D", "E", "F", "G"):
        for kind, network in networks.items():
            found[f"apudae {variant} {kind}"] = defenses.Apudae(network, variant=variant, **statistics, **one)
    return found


def all_defenses(cases: Cases) -> None:
    """Every shipped defence with its own settings but for the number of steps, and every kind with small networks."""
    x, _ = digits(3)
    grey = 0.8 * x + 0.1
    found = {f"small {name}": defense for name, defense in _small_defenses().items()}
    for name, path in fastmalade.shipped_models().items():
        cases.add(f"{name}: file", path.read_bytes)
        if name == "mnist-c":
            continue
        found[name] = Defense.from_pretrained(name)
        if hasattr(found[name], "n_steps"):
            found[name].n_steps = 4
        if hasattr(found[name], "n_restarts"):
            found[name].n_restarts = min(found[name].n_restarts, 2)
    for name, defense in found.items():
        defense.eval()
        low, high = defense.value_range
        images = grey * (high - low) + low
        cases.add(f"{name}: forward", defense, images, seed=SEED, sample_ids=[3, 2**40, 0])
        cases.add(f"{name}: gradient", value_and_gradient, defense, images, seed=SEED)
        cases.add(f"{name}: purify", defense.purify, (grey * 255).byte().numpy()[:, 0], seed=3)
        cases.add(f"{name}: none", defense.purify, images[:0], seed=3)
        cases.add(f"{name}: cost", defense.cost, 2)
    for name in ("scores", "errors", "codes"):
        for kind, defense in found.items():
            if hasattr(defense, name):
                options = {"seed": 1, "sample_ids": torch.arange(3)} if name == "codes" else {}
                cases.add(f"{kind}: {name}", getattr(defense, name), grey, **options)


def defended(n_steps: int = 3, **options: Any) -> DefendedClassifier:
    """The shipped purifier, shortened, in front of the shipped classifier."""
    purifier = Purifier.from_pretrained("malade-mnist")
    purifier.chain = purifier.chain.replace(n_steps=n_steps)
    return DefendedClassifier(purifier, fastmalade.load_classifier("mnist-c"), **options).eval()


def classifiers(cases: Cases) -> None:
    """Logits, votes and gradients of defended classifiers, gradients averaged over noise, and gradient reports."""
    x, y = digits(4)
    x = 0.8 * x + 0.1
    for mode in ("unrolled", "bpda", "blind"):
        for vote, chains in (("mean", 1), ("mean", 3), ("majority", 3)):
            model = defended(gradient=mode, vote=vote, n_chains=chains, seed=5)
            cases.add(f"{mode} {vote} {chains}: gradient", value_and_gradient, model, x)
            cases.add(f"{mode} {vote} {chains}: both", model.logits_and_purified, x, seed=8, sample_ids=[1, 0, 9, 4])
        options: dict[str, Any] = {"gradient": mode, "seed": 3, "samples": 1 if mode == "blind" else 4}
        cases.add(f"eot {mode}", fastmalade.eot_gradient, model, x, y, **options)
        cases.add(f"eot {mode} in blocks", fastmalade.eot_gradient, model, x, y, **options, max_bytes=2**20)
    spread: dict[str, Any] = {"samples": 4, "spread": True, "loss": "margin", "seed": 3, "threads": 2}
    cases.add("eot spread", fastmalade.eot_gradient, defended(), x, y, **spread)
    for name, report in (("purifier", defended().purifier), ("classifier", defended()), ("bare", UserModule())):
        randomised(report) if name == "bare" else None
        cases.add(f"report {name}", fastmalade.check_gradient, report, x[:2], directions=1)
    for name, build in models.CLASSIFIERS.items():
        cases.add(f"network {name}", value_and_gradient, randomised(build(), 0.05), x)


def all_attacks(cases: Cases) -> None:
    """Every attack with few steps, and each of their settings once."""
    x, y = digits(4)
    common: dict[str, Any] = {"epsilon": 0.3, "judge_chains": 3, "seed": 7}
    few = {"steps": 2, "eot": 2, "spread": True}
    runs: dict[str, Any] = {name: kind(**common) for name, kind in attacks.ATTACKS.items()}
    for name, kind in attacks.ATTACKS.items():
        fields = {field.name for field in dataclasses.fields(kind)}
        settings = common | {key: value for key, value in few.items() if key in fields}
        runs[name] = kind(**settings | ({"eot": 1, "spread": False} if name.startswith("apudae") else {}))
    varied: dict[str, dict[str, Any]] = {
        "l2": {"norm": "l2", "epsilon": 2.0},
        "l1": {"norm": "l1", "epsilon": 10.0},
        "bpda": {"gradient": "bpda", "noise": "fixed"},
        "blind": {"gradient": "blind", "eot": 1, "spread": False},
        "margin": {"loss": "margin", "judge": "mean", "early_stop": True, "restarts": 2},
        "targeted": {"targeted": True, "random_start": False},
    }
    runs |= {f"pgd {name}": attacks.PGD(**common | few | settings) for name, settings in varied.items()}
    model = defended()
    for name, attack in runs.items():
        cases.add(name, attack, model, x, y, progress=False, batch_size=3)
    calls = attacks.SeededCalls(defended(), 3)
    cases.add("seeded calls", lambda: [calls(x), calls(x)])
    cases.add("wilson", evaluation.wilson_interval, 9, 10)
    transfer = defined("transfer_attack")
    cases.add("transfer", transfer, runs["fgsm"], model.classifier, model, x, y, progress=False, seed=4)
    decoder = Defense.from_pretrained("inc-mnist").generator
    cases.add("pairs", defined("find_pairs"), decoder, model.classifier, 3, n_steps=3, seed=2)


def libraries(cases: Cases) -> None:
    """Defended models in the terms of the attack libraries."""
    from fastmalade.adapters.art import PurifierPreprocessor

    x, y = digits(3)
    foolbox = attacks.foolbox_model(defended(), seed=3)
    cases.add("foolbox", lambda: [foolbox(x), foolbox(x)])
    model = attacks.art_classifier(defended(), input_shape=(1, 28, 28), n_classes=10, seed=3)
    cases.add("art predict", model.predict, x.numpy())
    cases.add("art gradient", model.loss_gradient, x.numpy(), np.eye(10, dtype=np.float32)[y])
    for mode in ("unrolled", "bpda"):
        preprocessor = PurifierPreprocessor(defended().purifier, gradient=mode, seed=4)
        cases.add(f"preprocessor {mode}", preprocessor, x.numpy())
        cases.add(f"preprocessor {mode} gradient", preprocessor.estimate_gradient, x.numpy(), normals(x.shape).numpy())
    library: dict[str, Any] = {"epsilon": 0.2, "eot": 1, "steps": 2, "judge_chains": 3, "seed": 3}
    cases.add("autoattack", attacks.autoattack_rand, defended(), x, y, **library)
    cases.add("transfer table", evaluation.transfer_table, defended().classifier, {"malade": _purified}, x, y,
              [("fgsm", 0.2), ("pgd", 0.3)], steps=2, seed=1)  # fmt: skip
    cases.add("attacked", evaluation.attacked_images, defended().classifier, x, y, "pgd", 0.3, steps=2, seed=1)


def _purified(images: Tensor) -> Tensor:
    return fastmalade.purify(images, seed=6)


def trainings(cases: Cases) -> None:
    """Two epochs of every training on a few digits: the parameters that come out, and the report."""
    x, y = digits(40)
    both: dict[str, Any] = {"progress": False, "epochs": 2, "batch_size": 16, "seed": 4}
    classifier = fastmalade.load_classifier("mnist-c")
    small: dict[str, Any] = both | {"hidden_channels": (3, 4), "validation": (x[:9], y[:9])}
    cases.add("dae", fastmalade.train_autoencoder, x, **small)
    cases.add("dae, balanced", fastmalade.train_autoencoder, x, y, class_balanced=True, **small)
    cases.add("sdae", fastmalade.train_autoencoder, x, y, classifier=classifier, **small, threads=2)
    for name in models.CLASSIFIERS:
        cases.add(f"classifier {name}", fastmalade.train_classifier, name, x, y, max_shift=2, **both | {"epochs": 1})
    sizes: dict[str, dict[str, Any]] = {
        "train_gan": {"latent_dim": 4, "width": 2, "critic_width": 2},
        "train_vae": {"latent_dim": 3, "hidden": 8},
        "train_denoiser": {"width": 3, "depth": 3},
        "train_began": {"latent_dim": 3, "width": 2},
    }
    for name, settings in sizes.items():
        images = uniforms(16, 3, 64, 64) if name == "train_began" else x
        cases.add(name, defined(name, "training"), images, validation=images[:8], **both | settings)
    robust = models.build_classifier("D")
    randomised(robust, 0.05).requires_grad_(True)
    decoder = Defense.from_pretrained("inc-mnist").generator
    cases.add("robust", _trained, robust, defined("train_robust"), decoder, x, y, pairs=2, inner_steps=2, **both)
    substitute = randomised(models.build_classifier("D"), 0.05).requires_grad_(True)
    cases.add("substitute", _trained, substitute, defined("train_substitute_classifier"), defended(), x[:8],
              rounds=2, **both)  # fmt: skip
    defense = Defense.from_pretrained("autoencode-mnist")
    stand_in = defined("substitute_purifier")(defense, width=2)
    cases.add("substitute purifier", _trained, stand_in, defined("train_substitute_purifier"), defense, x, **both)
    conditions = {"clean": (x, y), "noisy": (x.clamp(0.2, 0.8), y)}
    search = defined("ChainSearch")(n_steps=(2,), n_random=3, n_local=2, seed=1)
    cases.add("tuning", defined("tune_chain"), defended().purifier.autoencoder, classifier, conditions, search)
    fresh = torch.Generator().manual_seed(3)
    cases.add("initial", fastmalade.Autoencoder, 2, (3, 5), generator=fresh)


def _trained(model: nn.Module, train: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """What a training in place returns, and its model."""
    return [train(model, *arguments, **options), model]


def files(cases: Cases) -> None:
    """Bytes of saved models, what is read back from them, and what the command line writes."""
    x, _ = digits(3)
    images, labels = data.embedded_digits()
    cases.add("digits", lambda: [images, labels, data.embedded_indices()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        saved = {"purifier": Purifier(autoencoder((1, 28, 28), (3, 5)), ChainConfig(4, decay=0.3)), **_small_defenses()}
        for name, defense in saved.items():
            cases.add(f"{name}: saved", _saved, defense, path / f"{name}.safetensors")
            cases.add(f"{name}: read", _read, path / f"{name}.safetensors", 0.8 * x + 0.1)
        _command_line(cases, path, images[::100], labels[::100])


def _saved(defense: Defense, path: Path) -> bytes:
    defense.save_pretrained(path, training={"images": 3})
    return path.read_bytes()


def _read(path: Path, x: Tensor) -> list[Any]:
    defense = Defense.from_pretrained(path)
    return [defense, repr(defense), defense(x, seed=2)]


def _command_line(cases: Cases, path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """``purify`` of every kind of file, and the commands that train, attack and evaluate."""
    np.save(path / "bytes.npy", images)
    np.save(path / "floats.npy", images[:, None] / 255)
    np.savez(path / "several.npz", a=images, b=labels)
    data.write_idx(path / "idx-ubyte.gz", images)
    (path / "folder").mkdir()
    for index, image in enumerate(images[:2]):
        Image.fromarray(image).save(path / "folder" / f"{index}.png")
    commands = {
        "bytes.npy": ["--batch-size", "2", "--steps", "2"],
        "floats.npy": ["--model", "mala-mnist", "--backend", "torch"],
        "several.npz": ["--key", "a", "--model", "magnet-mnist"],
        "idx-ubyte.gz": ["--threads", "2"],
        "folder": [],
    }
    for name, options in commands.items():
        out = path / f"out-{name}"
        cases.add(f"cli {name}", _run, out, "purify", str(path / name), str(out), "--seed", "5", "--quiet", *options)
    for part, kinds in (("train", (images, labels)), ("t10k", (images[::-1], labels[::-1]))):
        data.write_idx(path / f"{part}-images-idx3-ubyte", np.ascontiguousarray(kinds[0]))
        data.write_idx(path / f"{part}-labels-idx1-ubyte.gz", kinds[1].astype(np.uint8))
    for split in ("train", "validation", "test"):
        cases.add(f"mnist {split}", data.load_mnist, split, path)
    few = ["--attacks", "fgsm:0.2,pgd:0.3", "--images", "8", "--steps", "2", "--data-dir", str(path)]
    out = path / "evaluate.json"
    cases.add("cli transfer", _run, out, "transfer", *few, "--output", str(out))
    few = ["--attacks", "fgsm,pgd:bpda", "--images", "4", "--steps", "2", "--eot", "2"]
    out = path / "attack.json"
    cases.add("cli attack", _run, out, "attack", *few, "--output", str(out))
    np.save(path / "labels.npy", labels)
    given = ["--images", str(path / "bytes.npy"), "--labels", str(path / "labels.npy"), "--epochs", "1"]
    for name in ("autoencoder", "classifier"):
        out = path / f"{name}-trained.safetensors"
        cases.add(f"cli train {name}", _run, out, "train", name, str(out), *given)


def _run(out: Path, *arguments: str) -> Any:
    """The command line as installed: what it writes to ``out``."""
    (command,) = entry_points(group="console_scripts", name="fastmalade")
    before, sys.argv = sys.argv, ["fastmalade", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            command.load()()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(said.getvalue()[-250:]) from end
    finally:
        sys.argv = before
    if out.is_dir():
        return {entry.name: np.asarray(Image.open(entry)) for entry in sorted(out.iterdir())}
    if out.suffix == ".json":
        # What the clock says is left out.
        return {key: value for key, value in json.loads(out.read_text()).items() if key != "gradient_costs"}
    return gzip.decompress(out.read_bytes()) if out.suffix == ".gz" else out.read_bytes()
