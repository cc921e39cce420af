"""Attacks through the defence: rows, names and settings."""

from __future__ import annotations

import pytest
import torch

from fastmalade import Autoencoder, ChainConfig, DefendedClassifier, Purifier
from fastmalade.attacks import PGD, CounterAttackA, RandomFGSM
from fastmalade.evaluation.whitebox import AttackNameError, WhiteboxSettings, whitebox_rows

SETTINGS = WhiteboxSettings(steps=8, step_size=0.05, eot=2, judge_chains=3)


class _Brightness(torch.nn.Module):
    """Ten classes by mean brightness, differentiable."""

    def forward(self, x):
        centres = torch.linspace(0.05, 0.95, 10)
        return -((x.mean(dim=(1, 2, 3))[:, None] - centres) ** 2) * 200


@pytest.fixture
def defended():
    chain = ChainConfig(n_steps=2, step_size=0.2, noise_scale=0.1)
    purifier = Purifier(Autoencoder(generator=torch.Generator().manual_seed(3)), chain)
    return DefendedClassifier(purifier, _Brightness()).eval()


@pytest.fixture
def data(defended, digits):
    """Digits, and what the defended classifier says of them."""
    images = digits[0][:8]
    return images, defended(images, seed=1).argmax(1)


def test_rows(defended, data):
    told = []
    attacks = SETTINGS.attacks(["pgd:blind", "pgd:unrolled"])
    rows = list(whitebox_rows(defended, *data, attacks, progress=lambda *done: told.append(done)))
    assert [row.attack for row in rows] == ["none", "pgd:blind", "pgd:unrolled", "worst per image"]
    assert [row.n for row in rows] == [8] * 4
    clean, blind, unrolled, worst = rows
    assert clean.majority_correct >= 6
    assert unrolled.majority_correct < clean.majority_correct
    assert worst.majority_correct <= min(blind.majority_correct, unrolled.majority_correct)
    assert (blind.cosine, blind.gradients_per_image) == (None, 8)
    assert unrolled.cosine is not None
    assert unrolled.gradients_per_image == 16
    assert unrolled.judged == "majority of 3 queries with fresh noise"
    # The attack by itself finds the same.
    result = attacks["pgd:unrolled"](defended, *data, progress=False)
    assert unrolled.majority_correct == int((~result.success).sum())
    assert unrolled.accuracy_per_query == pytest.approx(1 - float(result.success_rate.mean()))
    assert worst.to_json() == {"attack": "worst per image", "majority_correct": worst.majority_correct, "n": 8}
    assert list(blind.to_json())[:4] == ["attack", "n", "accuracy_per_query", "majority_correct"]
    assert told[-1][0] == "pgd:unrolled"
    assert all(done <= total for _, done, total in told)


def test_one_attack_has_no_worst(defended, data):
    rows = list(whitebox_rows(defended, *data, SETTINGS.attacks(["fgsm:bpda"]), progress=False))
    assert [row.attack for row in rows] == ["none", "fgsm:bpda"]


def test_runs_are_kept(defended, data, tmp_path):
    attacks = SETTINGS.attacks(["pgd:bpda"])
    first = list(whitebox_rows(defended, *data, attacks, checkpoint_dir=tmp_path, progress=False))
    assert [path.name for path in tmp_path.iterdir()] == ["0-pgd-bpda.safetensors"]
    again = list(whitebox_rows(defended, *data, attacks, checkpoint_dir=tmp_path, progress=False))
    assert again[1] == first[1]


def test_settings_go_to_the_attacks_that_have_them():
    found = SETTINGS.attacks(["pgd", "rfgsm:bpda", "apudae-a"])
    assert list(found) == ["pgd", "rfgsm:bpda", "apudae-a"]
    assert found["pgd"] == PGD(epsilon=0.3, steps=8, step_size=0.05, eot=2, spread=True, judge_chains=3)
    assert found["rfgsm:bpda"] == RandomFGSM(epsilon=0.3, gradient="bpda", eot=2, spread=True, judge_chains=3)
    assert found["apudae-a"] == CounterAttackA(epsilon=0.3, steps=8, step_size=0.05, judge_chains=3)


@pytest.mark.parametrize("names", [[], ["cw"], ["pgd:exact"]])
def test_unknown_names(names):
    with pytest.raises(AttackNameError, match="expected"):
        SETTINGS.attacks(names)
