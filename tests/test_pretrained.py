"""Files of weights: round trips, damaged and foreign files, interrupted saves."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import fastmalade
from fastmalade import ChainConfig, PretrainedError, Purifier, pretrained
from fastmalade.defenses import save_defense
from fastmalade.models import build_classifier, registry


@pytest.fixture
def saved(purifier, tmp_path):
    path = tmp_path / "model.safetensors"
    purifier.save_pretrained(path, training={"seed": 3})
    return path


def edited(path, **changes):
    """The same tensors under an edited header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fastmalade"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header.update(changes)
    other = path.with_name("edited.safetensors")
    save_file(tensors, other, metadata={"fastmalade": json.dumps(header)})
    return other


def test_round_trip(purifier, saved, make_images):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loaded = Purifier.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), state)
    x = make_images(3, 1, 8, 8)
    assert torch.equal(loaded(x, seed=1), purifier(x, seed=1))
    assert (loaded.chain, loaded.value_range) == (purifier.chain, purifier.value_range)
    assert not loaded.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())
    assert pretrained.read_header(saved)["training"] == {"seed": 3}
    assert torch.equal(registry.load_autoencoder(saved)(x), purifier.autoencoder(x))


def test_wrong_options_of_loading_are_not_blamed_on_the_file(saved):
    for option, value in (("backend", "tpu"), ("precision", "fp8")):
        with pytest.raises(ValueError, match=f"{option}: expected one of") as caught:
            Purifier.from_pretrained(saved, **{option: value})
        assert not isinstance(caught.value, PretrainedError)


def test_all_settings_survive(make_autoencoder, tmp_path):
    config = ChainConfig(n_steps=7, step_size=0.1, noise_scale=0.2, decay=0.3, offset=4.0, clamp="every_step")
    path = tmp_path / "other.safetensors"
    Purifier(make_autoencoder(3, (4, 6)), config, value_range=(-1.0, 1.0)).save_pretrained(path)
    loaded = Purifier.from_pretrained(str(path), backend="torch")
    assert loaded.chain == config
    assert loaded.value_range == (-1.0, 1.0)
    assert loaded.backend == "torch"
    assert loaded.autoencoder.hidden_channels == (4, 6)


def test_saving_does_not_change_the_model_or_leave_files(purifier, saved):
    assert all(p.dtype == torch.float32 for p in purifier.parameters())
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_half_precision_file(purifier, tmp_path, make_images):
    path = tmp_path / "half.safetensors"
    save_defense(purifier, path, dtype="float16")
    loaded = Purifier.from_pretrained(path)
    for got, kept in zip(loaded.parameters(), purifier.parameters(), strict=True):
        assert torch.equal(got, kept.to(torch.float16).to(torch.float32))
    with pytest.raises(ValueError, match="dtype: expected one of float16, float32, got 'int8'"):
        save_defense(purifier, path, dtype="int8")


@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_classifier_round_trip(name, tmp_path, make_images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier(name).eval()
    path = tmp_path / "classifier.safetensors"
    registry.save_classifier(model, path)
    loaded = fastmalade.load_classifier(path)
    x = make_images(2, 1, 28, 28)
    assert torch.equal(loaded(x), model(x))
    assert type(loaded) is type(model)
    assert not loaded.training
    with pytest.raises(PretrainedError, match="expected kind purifier, got 'classifier'"):
        Purifier.from_pretrained(path)
    with pytest.raises(TypeError, match="got Linear"):
        registry.save_classifier(torch.nn.Linear(2, 2), path)


def test_autoencoder_round_trip(make_autoencoder, tmp_path):
    model, path = make_autoencoder(2, (3, 5)), tmp_path / "autoencoder.safetensors"
    registry.save_autoencoder(model, path)
    loaded = registry.load_autoencoder(path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.weights(), model.weights(), strict=True))
    with pytest.raises(PretrainedError, match="expected kind purifier"):
        Purifier.from_pretrained(path)


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="no-such-model") as caught:
        Purifier.from_pretrained("no-such-model")
    for name in fastmalade.shipped_models():
        assert name in str(caught.value)


def test_shipped_names_are_looked_up(saved, monkeypatch, make_images):
    monkeypatch.setattr(pretrained, "_WEIGHTS_DIR", saved.parent)
    assert fastmalade.shipped_models() == {"model": saved}
    x = make_images(2, 8, 8)
    expected = Purifier.from_pretrained("model").purify(x, seed=1)
    assert torch.equal(fastmalade.purify(x, model="model", seed=1), expected)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_files(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[:kept])
    with pytest.raises(PretrainedError, match="expected a safetensors file"):
        Purifier.from_pretrained(saved)


@pytest.mark.parametrize("content", [b"not a model", b"\x80\x04K\x01.", b"\xff" * 64, b"{}" * 40])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match=r"foreign\.safetensors: expected"):
        Purifier.from_pretrained(path)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"fastmalade": "[1, 2]"}, {"fastmalade": "{"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(PretrainedError, match="expected"):
            Purifier.from_pretrained(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "expected format version 1, got 2"),
        ({"kind": "tokenizer"}, "expected kind purifier, got 'tokenizer'"),
        ({"autoencoder": {"in_channels": 3, "hidden_channels": [10, 25]}}, "expected tensors of shapes"),
        ({"autoencoder": {"in_channels": 10**9, "hidden_channels": [10**9, 25]}}, "expected"),
        ({"autoencoder": {"in_channels": "1"}}, "arguments of the autoencoder"),
        ({"autoencoder": {"channels": 1}}, "arguments of the autoencoder"),
        ({"autoencoder": None}, "arguments of the autoencoder"),
        ({"chain": {"n_steps": -1}}, "chain and value_range"),
        ({"chain": {"steps": 1}}, "chain and value_range"),
        ({"value_range": [1, 0]}, "chain and value_range"),
        ({"value_range": 5}, "chain and value_range"),
    ],
)
def test_damaged_headers(saved, changes, message):
    with pytest.raises(PretrainedError, match=message):
        Purifier.from_pretrained(edited(saved, **changes))


def test_parameters_that_are_not_finite(purifier, tmp_path):
    path = tmp_path / "model.safetensors"
    with torch.no_grad():
        purifier.autoencoder.conv1.bias[0] = float("nan")
    with pytest.raises(ValueError, match="expected finite parameters"):
        purifier.save_pretrained(path)
    assert not path.exists()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_interrupted_save_leaves_the_old_file(purifier, saved, monkeypatch, function):
    before = saved.read_bytes()
    with torch.no_grad():
        purifier.autoencoder.conv1.bias.add_(1.0)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        purifier.save_pretrained(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_saving_over_an_old_file_and_loading_it_anew(purifier, saved, make_images):
    x = make_images(2, 1, 8, 8)
    first = fastmalade.purify(x, model=saved, seed=1)
    assert torch.equal(fastmalade.purify(x, model=str(saved), seed=1), first)
    with torch.no_grad():
        purifier.autoencoder.conv3.bias.add_(0.5)
    purifier.save_pretrained(saved)
    os.utime(saved, ns=(1, 1))
    second = fastmalade.purify(x, model=saved, seed=1)
    assert torch.equal(second, purifier.purify(x, seed=1))
    assert not torch.equal(second, first)
