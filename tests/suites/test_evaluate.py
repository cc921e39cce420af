"""``fastmalade.evaluate``: rows, scores, suites as data, folders that a killed run goes on from."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fastmalade
from fastmalade import DefendedClassifier, Purifier, evaluate
from fastmalade.attacks import AttackCheckpointError
from fastmalade.suites import (
    AttackSpec,
    BinarizationSpec,
    EvaluationReport,
    SquareSpec,
    Suite,
    load_suite,
    merge_reports,
    shipped_suites,
)
from fastmalade.suites.page import page, write_page

pytest.importorskip("art")


@pytest.fixture
def short(suite):
    """The exact gradient alone, few steps."""
    attacks = (AttackSpec("exact", "everything but the noise", "unrolled", steps=4, eot=2, restarts=2),)
    return dataclasses.replace(suite, attacks=attacks, square=None, binarization=None, images=6)


@pytest.fixture
def defended(classifier):
    return DefendedClassifier(Purifier.from_pretrained("malade-mnist"), classifier).eval()


def recount(model, adversarial, labels, queries):
    """Share of wrong answers with noise of our own, by no code of the package but the model."""
    wrong = torch.zeros(len(labels), dtype=torch.float64)
    with torch.no_grad():
        for query in range(queries):
            wrong += (model(adversarial, seed=1000 + query).argmax(1) != labels).double()
    return wrong / queries


def test_rows_are_those_of_the_saved_images(defended, some_digits, short, tmp_path):
    found = evaluate(defended, *some_digits, suite=short, folder=tmp_path, progress=False)
    images, labels = (part[:6] for part in some_digits)
    row = found.row("exact")
    assert (row.n, row.queries, row.epsilon, row.norm) == (6, 5, 0.3, "linf")
    saved = load_file(tmp_path / "exact.safetensors")["adversarial"]
    assert float((saved - images).abs().max()) <= 0.3 + 1e-6
    again = recount(defended, saved, labels, 101)
    certain = (again < 0.2) | (again > 0.8)  # where 5 queries and 101 cannot disagree but by great luck
    held = found.results["exact"].success_rate <= 0.5
    assert bool((held[certain] == (again <= 0.5)[certain]).all())
    assert row.majority == int(held.sum())
    assert row.worst <= row.majority
    assert row.one_shot == round(float((1 - found.results["exact"].success_rate).sum()))


def test_scores_of_a_known_share():
    from fastmalade.suites import Row

    share = torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=torch.float64)
    row = Row.judged("a", "b", share, 5, ball=(0.3, "linf"))
    assert (row.majority, row.worst, row.one_shot) == (2, 1, 2)
    assert row.accuracy() == 0.5
    low, high = row.to_json()["worst_95"]
    assert low < 0.25 < high


def test_files_of_a_run(defended, some_digits, short, tmp_path):
    found = evaluate(defended, *some_digits, suite=short, folder=tmp_path, progress=False)
    assert {file.name for file in tmp_path.iterdir()} == {
        "exact.safetensors", "log.txt", "report.json", "report.md",
    }  # fmt: skip
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["schema"] == 1
    assert values["verdict"] == found.verdict
    assert [row["attack"] for row in values["rows"]] == ["none", "exact"]
    assert values["settings"]["attacks"]["exact"]["eot"] == 2
    assert {check["name"] for check in values["checks"]} == {check.name for check in found.checks}
    text = (tmp_path / "report.md").read_text()
    assert f"# {found.verdict}: Purifier + ClassifierC" in text
    assert "at most" in (tmp_path / "log.txt").read_text()


def test_a_finished_run_is_read_back_and_another_is_refused(defended, some_digits, short, tmp_path):
    first = evaluate(defended, *some_digits, suite=short, folder=tmp_path, progress=False)
    again = evaluate(defended, *some_digits, suite=short, folder=tmp_path, progress=False)
    assert first.rows[1:] == again.rows[1:]
    assert first.checks == again.checks
    with pytest.raises(AttackCheckpointError):
        evaluate(defended, *some_digits, suite=short, folder=tmp_path, seed=1, progress=False)


KILLED = """
import sys, torch
torch.set_num_threads(1)
import fastmalade, dataclasses
from fastmalade.data import embedded_tensors
from fastmalade.attacks import base
from fastmalade.suites import AttackSpec, load_suite
base.SAVE_SECONDS = 0.0
x, y = embedded_tensors()
spec = AttackSpec("exact", "", "unrolled", steps=30, eot=2, restarts=2)
suite = dataclasses.replace(load_suite("quick"), attacks=(spec,), square=None, binarization=None, images=8)
model = fastmalade.DefendedClassifier(
    fastmalade.Purifier.from_pretrained("malade-mnist"), fastmalade.load_classifier("mnist-c"))
report = fastmalade.evaluate(model, x, y, suite=suite, folder=sys.argv[1], progress=False)
print(report.row("exact"))
"""


def test_killed_half_way_it_ends_as_if_it_had_not_been(tmp_path):
    def begin(folder):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)

    whole = begin(tmp_path / "whole")
    process, state = begin(tmp_path / "killed"), tmp_path / "killed" / "exact.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    expected, _ = whole.communicate(timeout=300)
    printed, _ = begin(tmp_path / "killed").communicate(timeout=300)
    assert whole.returncode == 0
    # All but the time it took.
    assert printed.split("seconds")[0] == expected.split("seconds")[0]
    one, other = (load_file(tmp_path / name / "exact.safetensors") for name in ("whole", "killed"))
    assert torch.equal(one["adversarial"], other["adversarial"])
    assert os.path.exists(tmp_path / "killed" / "report.json")


def test_any_callable_is_a_model(some_digits, short):
    torch.manual_seed(0)
    weight = torch.randn(784, 10)
    found = evaluate(lambda x: x.flatten(1) @ weight, *some_digits, suite=short, progress=False)
    assert found.row("exact").queries == 1
    assert found.check("eval mode").status == "N/A"
    assert found.classes == 10


def test_another_range_and_ball(classifier, some_digits, short):
    images, labels = some_digits
    short = dataclasses.replace(short, epsilon=4.0, norm="l2")

    def model(x):
        return classifier((x + 1) / 2)

    found = evaluate(model, 2 * images - 1, labels, suite=short, value_range=(-1, 1), progress=False)
    assert found.row("exact").norm == "l2"
    reach = (found.results["exact"].adversarial - (2 * images[:6] - 1)).flatten(1).norm(dim=1)
    assert float(reach.max()) <= 4.0 + 1e-4
    assert found.check("in the ball").status == "PASS"


def test_shipped_suites_are_whole():
    assert shipped_suites() == ["mnist-whitebox", "quick", "sound"]
    for name in ("quick", "sound"):
        suite = load_suite(name)
        assert suite.name == name
        assert {"blind", "bpda", "unrolled"} == {spec.gradient for spec in suite.attacks}
        assert any(spec.unbounded for spec in suite.attacks)
    sound = {spec.name: spec for spec in load_suite("sound").attacks}["exact gradient"]
    assert (sound.steps, sound.eot, sound.restarts) == (100, 16, 5)
    assert load_suite("quick", epsilon=8 / 255, norm=None).epsilon == 8 / 255


def test_the_attacks_of_001_table_1(defended, some_digits, tmp_path):
    """Every attack of the suite on a few digits by a few steps: balls, rows, images read back."""
    pytest.importorskip("foolbox")
    whole = load_suite("mnist-whitebox")
    assert [spec.options for spec in whole.attacks if spec.kind in ("cw", "salt-and-pepper")] == [
        {"learning_rate": 0.1, "constant": 100.0}, {"share": 0.25},
    ]  # fmt: skip
    shorter = tuple(
        dataclasses.replace(s, steps=min(s.steps, 60 if s.kind in ("cw", "boundary") else 10), eot=min(s.eot, 2),
                            images=3 if s.kind == "boundary" else None)
        for s in whole.attacks
    )  # fmt: skip
    suite = dataclasses.replace(whole, images=5, judge_chains=3, attacks=shorter)
    found = evaluate(defended, *some_digits, suite=suite, folder=tmp_path, progress=False)
    rows = {row.attack: row for row in found.rows}
    assert list(rows)[1:] == [spec.name for spec in whole.attacks]
    assert (rows["PGD, L2 4"].norm, rows["PGD, L2 4"].epsilon) == ("l2", 4.0)
    assert rows["BPDA, eps 0.4"].epsilon == 0.4
    assert rows["Boundary"].n == 3
    images = some_digits[0][:5]
    noisy = load_file(tmp_path / "SaltnPepper.safetensors")["adversarial"]
    changed = (noisy != images).flatten(1).sum(1)
    # A pixel that is black already may be made black.
    assert bool(((changed >= 60) & (changed <= 196)).all())
    assert set(noisy[noisy != images].tolist()) == {0.0, 1.0}
    carlini = load_file(tmp_path / "CW.safetensors")["adversarial"]
    assert rows["CW"].epsilon == pytest.approx(float((carlini - images).flatten(1).norm(dim=1).max()), abs=1e-3)
    assert rows["CW"].majority < 5
    again = evaluate(defended, *some_digits, suite=suite, folder=tmp_path, progress=False)
    for row in again.rows:
        assert (row.majority, row.epsilon) == (rows[row.attack].majority, rows[row.attack].epsilon)
    with pytest.raises(AttackCheckpointError):
        evaluate(defended, *some_digits, suite=suite, folder=tmp_path, seed=3, progress=False)


def test_a_bare_classifier_has_the_attacks_that_need_no_defence(classifier, some_digits):
    whole = load_suite("mnist-whitebox")
    few = tuple(dataclasses.replace(s, steps=4) for s in whole.attacks if s.kind not in ("cw", "ead", "boundary"))
    found = evaluate(classifier, *some_digits, suite=dataclasses.replace(whole, images=4, attacks=few), progress=False)
    assert [row.attack for row in found.rows] == [
        "none", "FGSM", "R+FGSM", "PGD", "PGD with EOT", "MIM", "PGD, eps 0.4", "FGM, L2 4", "PGD, L2 4", "SaltnPepper",
    ]  # fmt: skip


def test_a_suite_of_ones_own(tmp_path):
    text = (
        'purpose = "p"\nimages = 3\nepsilon = 0.1\nnorm = "linf"\njudge_chains = 3\nstep_share = 0.1\n'
        'schedule = "constant"\n[[attacks]]\nname = "a"\nknows = "all"\ngradient = "unrolled"\n'
    )
    path = tmp_path / "mine.toml"
    path.write_text(text)
    suite = load_suite(path)
    assert (suite.name, suite.images, suite.square) == ("mine", 3, None)
    for change, message in (
        (("unrolled", "blind"), "expected PGD with the exact gradient"),
        (("linf", "l7"), "norm"),
        (('name = "a"', "nome = 1"), "suite mine: expected a suite"),
        (("epsilon = 0.1", "epsilon = -1"), "epsilon"),
        (("images = 3", "images ="), "suite mine: expected a suite"),
    ):
        path.write_text(text.replace(*change))
        with pytest.raises(ValueError, match=message):
            load_suite(path)
    with pytest.raises(ValueError, match=r"expected one of mnist-whitebox, quick, sound or a \.toml file, got 'fast'"):
        load_suite("fast")
    with pytest.raises(FileNotFoundError):
        load_suite(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": 3}, TypeError, "model: expected a module or callable"),
        ({"model": lambda x: x}, ValueError, r"model: expected logits of shape \(4, K\)"),
        (
            {"images": torch.zeros(0, 1, 28, 28), "labels": torch.zeros(0, dtype=torch.int64)},
            ValueError,
            "at least one",
        ),
        ({"images": 2 + torch.zeros(16, 1, 28, 28)}, ValueError, "images: expected values in"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "labels"),
        ({"seed": -1}, ValueError, "seed"),
        ({"n_images": 0}, ValueError, "images"),
        ({"epsilon": 0.0}, ValueError, "epsilon"),
    ],
)
def test_wrong_arguments(classifier, some_digits, short, changed, error, message):
    arguments = {"model": classifier, "images": some_digits[0], "labels": some_digits[1]} | changed
    model, images, labels = (arguments.pop(name) for name in ("model", "images", "labels"))
    with pytest.raises(error, match=message):
        evaluate(model, images, labels, suite=short, progress=False, **arguments)


def test_a_defence_with_another_gradient_is_refused(classifier, some_digits, short):
    purifier = Purifier.from_pretrained("malade-mnist")
    purifier.gradient = "bpda"
    model = DefendedClassifier(purifier, classifier, gradient="bpda")
    with pytest.raises(ValueError, match="expected a defence with an exact gradient"):
        evaluate(model, *some_digits, suite=short, progress=False)


def test_the_page_is_whole_and_safe(defended, some_digits, suite, tmp_path):
    found = evaluate(defended, *some_digits, suite=dataclasses.replace(suite, images=6), progress=False)
    text = page(found)
    assert text.count("<svg") == 2
    assert text.count("data:image/png;base64,") == 18
    for forbidden in ("http://", "https://", "<script", "src='/"):
        assert forbidden not in text
    for check in found.checks:
        assert check.name in text
    odd = dataclasses.replace(found, model="<b>&", results={})
    assert "<b>&<" not in page(odd)
    write_page(found, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [420, 1200])
def test_the_page_in_a_browser(defended, some_digits, short, tmp_path, width):
    """Drawn offline at the width of a phone and of a desk: something is there, and nothing sticks out on the right."""
    pillow = pytest.importorskip("PIL.Image")
    found = evaluate(defended, *some_digits, suite=short, progress=False)
    write_page(found, tmp_path / "report.html")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},2400",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(pillow.open(tmp_path / "page.png").convert("L"))
    assert pixels.shape[1] == width
    inked = pixels < 128
    assert 0.01 < inked[:1200].mean() < 0.5
    assert not inked[:, -6:].any()
    assert inked[:300, :300].any()


def test_a_report_without_attacks_has_a_page(classifier, some_digits, suite):
    class Detached(nn.Module):
        def forward(self, x):
            return classifier(x.detach())

    found = evaluate(Detached(), *some_digits, suite=dataclasses.replace(suite, square=None), progress=False)
    assert found.verdict == "FAIL"
    assert "gradient exists" in page(found)
    with pytest.raises(KeyError, match="expected one of"):
        found.check("nothing")
    with pytest.raises(KeyError, match="expected one of none"):
        found.row("nothing")


class Lines(nn.Module):
    """Batch-invariant to more digits than an attack can see."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(784, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return x.flatten(1).double() @ self.weight


def test_shards_are_the_whole(some_digits, short):
    images, labels = some_digits
    arguments = {"suite": dataclasses.replace(short, images=11), "progress": False}
    whole = evaluate(Lines(), images, labels, **arguments)
    parts = [evaluate(Lines(), images, labels, shard=(i, 3), **arguments) for i in (3, 1, 2)]
    assert [part.rows[0].n for part in parts] == [4, 3, 4]
    merged = merge_reports([EvaluationReport.from_json(json.loads(json.dumps(part.to_json()))) for part in parts])
    assert merged.settings["images"] == [0, 11]
    assert merged.row("exact").n == 11
    for name in ("none", "exact"):
        for rule in ("majority", "worst", "one_shot"):
            assert getattr(merged.row(name), rule) == getattr(whole.row(name), rule)
    adversarial = torch.cat([parts[k].results["exact"].adversarial for k in (1, 2, 0)])
    torch.testing.assert_close(adversarial, whole.results["exact"].adversarial)
    assert "of 3 shards" in merged.check("deployed path").explanation
    with pytest.raises(ValueError, match="got one from 3 after 0 images"):
        merge_reports(parts[::2])
    with pytest.raises(ValueError, match="got one from 0 after 3 images"):
        merge_reports([parts[1], parts[1]])
    other = evaluate(Lines(), images, labels, shard=(1, 3), seed=1, **arguments)
    with pytest.raises(ValueError, match="different seed"):
        merge_reports([other, parts[2], parts[0]])
    with pytest.raises(ValueError, match="at least one"):
        merge_reports([])
    with pytest.raises(ValueError, match="expected a report"):
        EvaluationReport.from_json({"schema": 1})
    for wrong in ((0, 3), (4, 3), (1.0, 2)):
        with pytest.raises(ValueError, match="shard"):
            evaluate(Lines(), images, labels, shard=wrong, **arguments)


def test_square_and_binarization_look_at_the_first_images_of_the_whole(classifier, some_digits, suite):
    suite = dataclasses.replace(suite, square=SquareSpec(4, 20), binarization=BinarizationSpec(4, 8, 4, 1))
    part = evaluate(classifier, *some_digits, suite=suite, shard=(2, 2), progress=False)
    assert part.check("black box").status == part.check("binarization").status == "N/A"
    assert "not in this shard" in part.check("black box").explanation


def test_suite_is_a_value():
    assert isinstance(load_suite("quick"), Suite)
    assert load_suite(load_suite("quick")) == load_suite("quick")
    assert fastmalade.evaluate is evaluate
