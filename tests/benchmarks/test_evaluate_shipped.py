"""benchmarks/evaluate_shipped.py: every column on a few digits, by attacks of a few steps."""

from __future__ import annotations

import dataclasses

import evaluate_shipped
import pytest
import torch

from fastmalade import DefendedClassifier
from fastmalade.attacks import PGD

QUICK = PGD(epsilon=0.3, steps=2, step_size=0.2, eot=2, schedule="cosine")


@pytest.fixture
def quick(monkeypatch):
    torch.set_num_threads(1)
    attacks = {
        name: dataclasses.replace(QUICK, gradient=attack.gradient, eot=min(attack.eot, 2), epsilon=attack.epsilon)
        for name, attack in evaluate_shipped.ATTACKS.items()
    }
    monkeypatch.setattr(evaluate_shipped, "ATTACKS", attacks)
    for name in ("AUTOATTACK_IMAGES", "SQUARE_IMAGES"):
        monkeypatch.setattr(evaluate_shipped, name, 2)
    exact = evaluate_shipped.autoattack_rand
    monkeypatch.setattr(evaluate_shipped, "autoattack_rand", lambda *a, **o: exact(*a, **o, steps=2, eot=1))


def run(digits, tmp_path, purifier, classifier) -> evaluate_shipped.Run:
    pair = evaluate_shipped.Pair(purifier, classifier)
    return evaluate_shipped.Run(pair, digits[0][:12], digits[1][:12], 4, tmp_path)


def test_every_column_of_a_pair(digits, tmp_path, quick):
    pytest.importorskip("art")
    pytest.importorskip("pyautoattack")
    found = {
        name: measure() for name, measure in run(digits, tmp_path, "malade-mnist", "mnist-c").columns().items()
        if name != "square"
    }  # fmt: skip
    assert set(found) == {"clean", "transferred", *evaluate_shipped.ATTACKS, "autoattack"}
    assert found["clean"]["correct"] == found["clean"]["n"] == 12
    assert set(found["transferred"]) == {"pgd 0.2", "pgd 0.3", "pgd 0.4", "fgsm 0.3"}
    for name in evaluate_shipped.ATTACKS:
        assert found[name]["n"] == 4
    assert found["known noise"]["judged"] != found["exact"]["judged"]
    files = {file.name for file in tmp_path.glob("*.safetensors")}
    assert "malade-mnist-+-mnist-c-exact-4.safetensors" in files


def test_known_noise_is_judged_by_that_noise(digits, tmp_path, quick, monkeypatch):
    seen = []

    def attack(self, target, images, labels, **options):
        seen.append((target, self))
        raise KeyboardInterrupt

    monkeypatch.setattr(PGD, "__call__", attack)
    measured = run(digits, tmp_path, "malade-mnist", "mnist-c")
    for name in ("exact", "known noise", "no noise"):
        with pytest.raises(KeyboardInterrupt):
            measured.attack(name, evaluate_shipped.ATTACKS[name])
    (plain, exact), (fixed, known), (silent, _) = seen
    assert isinstance(plain, DefendedClassifier)
    assert plain.seed is None
    x = digits[0][:3]
    assert torch.equal(fixed(x), fixed(x))
    assert torch.allclose(fixed(x[1:2]), fixed(x)[1:2], atol=1e-5)
    assert torch.equal(fixed.purifier(x[1:2], seed=0), measured.purifier(x[1:2], seed=0, sample_ids=[0]))
    assert (exact.judge_chains, known.judge_chains) == (9, 1)
    assert silent.purifier.chain.noise_scale == 0.0
    assert silent.purifier.chain.step_size == plain.purifier.chain.step_size


def test_a_bare_classifier_has_no_noise_to_know(digits, tmp_path, quick):
    columns = run(digits, tmp_path, None, "mnist-c").columns()
    assert set(columns) == {"clean", "transferred", "exact", "exact eps 0.4", "exact l2 4"}
    assert columns["exact"]()["settings"]["eot"] == 1
