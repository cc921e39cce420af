"""benchmarks/evaluate_shipped.py: every column on a few digits, by attacks of a few steps."""

from __future__ import annotations

import dataclasses

import evaluate_shipped
import pytest
import torch

from fastmalade import DefendedClassifier
from fastmalade.attacks import PGD
from fastmalade.suites import SquareSpec

QUICK = PGD(epsilon=0.3, steps=2, step_size=0.2, eot=2, schedule="cosine")


@pytest.fixture
def quick(monkeypatch):
    torch.set_num_threads(1)
    attacks = {
        name: dataclasses.replace(QUICK, gradient=attack.gradient, eot=min(attack.eot, 2), epsilon=attack.epsilon)
        for name, attack in evaluate_shipped.ATTACKS.items()
    }
    monkeypatch.setattr(evaluate_shipped, "ATTACKS", attacks)
    monkeypatch.setattr(evaluate_shipped, "AUTOATTACK_IMAGES", 2)
    monkeypatch.setattr(evaluate_shipped, "SQUARE", SquareSpec(2, 5))
    exact = evaluate_shipped.autoattack_rand
    monkeypatch.setattr(evaluate_shipped, "autoattack_rand", lambda *a, **o: exact(*a, **o, steps=2, eot=1))


def run(digits, tmp_path, purifier, classifier) -> evaluate_shipped.Run:
    pair = evaluate_shipped.Pair(purifier, classifier)
    return evaluate_shipped.Run(pair, digits[0][:12], digits[1][:12], tmp_path)


def test_every_column_of_a_pair(digits, tmp_path, quick, monkeypatch):
    pytest.importorskip("art")
    pytest.importorskip("pyautoattack")
    monkeypatch.setattr(evaluate_shipped, "RESULTS", tmp_path / "robustness.json")
    measured = run(digits, tmp_path, "malade-mnist", "mnist-c")
    columns = measured.columns()
    assert set(columns) == {"clean", "transferred", *evaluate_shipped.ATTACKS, "autoattack", "square"}
    for name in columns:
        evaluate_shipped.record(measured, name, range(4) if name in evaluate_shipped.ATTACKS else None)
    found = evaluate_shipped.results()[measured.pair.name]
    assert found["clean"]["correct"] == found["clean"]["n"] == 12
    assert set(found["transferred"]) == {"pgd 0.2", "pgd 0.3", "pgd 0.4", "fgsm 0.3", "seconds"}
    for name in evaluate_shipped.ATTACKS:
        assert found[name]["n"] == 4
    assert found["known noise"]["blocks"][0]["judged"] != found["exact"]["blocks"][0]["judged"]
    files = {file.name for file in tmp_path.glob("*.safetensors")}
    assert "malade-mnist-+-mnist-c-exact-0-4.safetensors" in files


def test_a_column_grows_by_blocks(digits, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(evaluate_shipped, "RESULTS", tmp_path / "robustness.json")
    monkeypatch.setattr(evaluate_shipped, "BLOCK", 3)
    monkeypatch.setattr(evaluate_shipped, "find_data_dir", lambda data: data)
    monkeypatch.setattr(evaluate_shipped, "load_mnist", lambda split, data: (digits[0][:12], digits[1][:12]))
    arguments = ["x", "--pairs", "malade-mnist + mnist-c", "--columns", "exact", "--runs", str(tmp_path), "--images"]
    columns = []
    for images in ("5", "5", "9"):
        monkeypatch.setattr("sys.argv", [*arguments, images])
        evaluate_shipped.main()
        columns.append(evaluate_shipped.results()["malade-mnist + mnist-c"]["exact"])
    assert columns[0] == columns[1]
    assert [(block["first"], block["n"]) for block in columns[2]["blocks"]] == [(0, 3), (3, 2), (5, 3), (8, 1)]
    assert columns[2]["blocks"][:2] == columns[0]["blocks"]
    assert columns[2]["n"] == 9
    assert columns[2]["correct"] == sum(block["correct"] for block in columns[2]["blocks"])
    # Digits have the noise of their number, whatever the block.
    whole = run(digits, tmp_path / "whole", "malade-mnist", "mnist-c").attack("exact", range(9))
    assert whole["correct"] == columns[2]["correct"]
    assert whole["accuracy_per_query"] == pytest.approx(columns[2]["accuracy_per_query"], abs=2e-5)


def test_known_noise_is_judged_by_that_noise(digits, tmp_path, quick, monkeypatch):
    seen = []

    def attack(self, target, images, labels, **options):
        seen.append((target, self))
        raise KeyboardInterrupt

    monkeypatch.setattr(PGD, "__call__", attack)
    measured = run(digits, tmp_path, "malade-mnist", "mnist-c")
    for name in ("exact", "known noise", "no noise"):
        with pytest.raises(KeyboardInterrupt):
            measured.attack(name, range(4))
    (plain, exact), (fixed, known), (silent, _) = seen
    assert isinstance(plain, DefendedClassifier)
    assert plain.seed is None
    x = digits[0][:3]
    assert torch.equal(fixed(x), fixed(x))
    assert torch.allclose(fixed(x[1:2]), fixed(x)[1:2], atol=1e-5)
    assert torch.equal(fixed.defended.purifier(x[1:2], seed=0), measured.purifier(x[1:2], seed=0, sample_ids=[0]))
    assert (exact.judge_chains, known.judge_chains) == (9, 1)
    assert silent.purifier.chain.noise_scale == 0.0
    assert silent.purifier.chain.step_size == plain.purifier.chain.step_size


def test_a_bare_classifier_has_no_noise_to_know(digits, tmp_path, quick):
    measured = run(digits, tmp_path, None, "mnist-c")
    assert set(measured.columns()) == {"clean", "transferred", "exact", "exact eps 0.4", "exact l2 4"}
    assert measured.attack("exact", range(4))["settings"]["eot"] == 1
