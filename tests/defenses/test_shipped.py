"""The shipped defences do on the embedded digits about what their cards say."""

from __future__ import annotations

import pytest

from fastmalade import Defense, Purifier, load_classifier
from fastmalade.attacks import CounterAttackA, CounterAttackB
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.evaluation import accuracy, wilson_interval
from fastmalade.pretrained import read_header

COUNTS = {"magnet-mnist": 500, "autoencode-mnist": 500, "apudae-mnist": 10, "inc-mnist": 40, "defense-gan-mnist": 10}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.slow
def test_purified_digits_are_still_recognised(digits, name):
    images, labels = (part[: COUNTS[name]] for part in digits)
    defense = Defense.from_pretrained(name)
    if name == "defense-gan-mnist":
        # A restart is enough for most digits; the card's ten would take a minute.
        defense.n_restarts = 2
    recorded = read_header(name)["training"]["test_accuracy_clean_purified"]
    purified = defense.purify(images, seed=0)
    low, high = wilson_interval(accuracy(load_classifier("mnist-c"), purified, labels), len(labels), 0.9999)
    assert low <= recorded["correct"] / recorded["n"] <= high


def test_any_name_of_a_purifier_loads_as_a_defense():
    assert isinstance(Defense.from_pretrained("malade-mnist"), Purifier)
    for name in COUNTS:
        assert not isinstance(Defense.from_pretrained(name), Purifier)


def test_the_counter_attacks_run_on_apudae(digits):
    images, labels = digits[0][:2], digits[1][:2]
    defense = Defense.from_pretrained("apudae-mnist")
    defense.n_steps = 2
    model = DefendedClassifier(defense, load_classifier("mnist-c"), seed=0).eval()
    for attack in (CounterAttackA, CounterAttackB):
        result = attack(epsilon=0.3, norm="linf", steps=3, step_size=0.1, seed=0, judge_chains=1)(model, images, labels)
        assert float((result.adversarial - images).abs().max()) == pytest.approx(0.3, abs=1e-5)
