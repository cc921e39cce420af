"""The shipped weights do on the embedded digits what their cards say."""

from __future__ import annotations

import pytest
import torch

import fastmalade
from fastmalade import DefendedClassifier, Purifier, load_classifier, shipped_models
from fastmalade.attacks import PGD
from fastmalade.evaluation import accuracy, attacked, wilson_interval
from fastmalade.pretrained import read_header


def test_names_sizes_and_cards():
    models = shipped_models()
    assert sorted(models) == [
        "apudae-mnist",
        "autoencode-mnist",
        "defense-gan-mnist",
        "inc-mnist",
        "magnet-mnist",
        "mala-mnist",
        "malade-joint-mnist",
        "malade-mnist",
        "malade-robust-mnist",
        "mnist-c",
        "mnist-c-joint",
        "mnist-c-madry",
    ]
    assert sum(path.stat().st_size for path in models.values()) < 15e6
    for name, path in models.items():
        facts = read_header(name)["training"]
        card = path.with_suffix(".md").read_text(encoding="utf-8")
        assert card.startswith(f"# {name}\n")
        for digest in facts["data_sha256"].values():
            assert digest in card


@pytest.mark.parametrize("name", [pytest.param("mala-mnist", marks=pytest.mark.repetition), "malade-mnist"])
def test_purified_digits_are_still_recognised(digits, name):
    images, labels = digits
    classifier, purifier = load_classifier("mnist-c"), Purifier.from_pretrained(name)
    assert purifier.chain.n_steps == 10
    recorded = read_header(name)["training"]["test_accuracy_clean_purified"]
    purified = purifier.purify(images, seed=0)
    low, high = wilson_interval(accuracy(classifier, purified, labels), len(labels), 0.9999)
    assert low <= recorded["correct"] / recorded["n"] <= high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classifier_name"), [("malade-robust-mnist", "mnist-c"), ("malade-joint-mnist", "mnist-c-joint")]
)
def test_trained_under_attack_they_withstand_the_exact_gradient(digits, name, classifier_name):
    purifier, classifier = Purifier.from_pretrained(name), load_classifier(classifier_name)
    images, labels = digits
    assert accuracy(classifier, purifier.purify(images, seed=0), labels) >= 975
    attack = PGD(epsilon=0.3, steps=10, step_size=0.06)
    images, labels = images[::30], labels[::30]
    left, left_paper = (
        int((~attack(DefendedClassifier(*pair), images, labels).success).sum())
        for pair in ((purifier, classifier), (Purifier.from_pretrained("malade-mnist"), load_classifier("mnist-c")))
    )
    assert left >= left_paper + 4  # of 34
    assert left >= 20


@pytest.mark.slow
def test_the_classifier_is_right_bare_and_malade_undoes_a_transferred_attack(digits):
    images, labels = digits[0][:100], digits[1][:100]
    classifier = load_classifier("mnist-c")
    assert accuracy(classifier, *digits) >= 980
    adversarial = attacked(classifier, images, labels, "pgd", 0.2, steps=20, step_size=0.02)
    bare = accuracy(classifier, adversarial, labels)
    purified = Purifier.from_pretrained("malade-mnist").purify(adversarial, seed=0)
    assert bare < 30
    assert accuracy(classifier, purified, labels) > bare + 40


@pytest.mark.mnist
def test_cards_data_is_the_data_at_hand(mnist):
    from hashlib import sha256

    from fastmalade.data import find_data_dir

    assert len(mnist["test"][0]) == 10_000
    recorded = read_header("malade-mnist")["training"]["data_sha256"]
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in find_data_dir().glob("*ubyte*")}
    if set(found) != set(recorded):
        pytest.skip(f"the data here is packed otherwise than the training's: {sorted(found)}")
    assert found == recorded


def test_purify_with_the_default_model_is_deterministic_for_a_seed(digits):
    images = digits[0][:17]
    assert torch.equal(fastmalade.purify(images, seed=3), fastmalade.purify(images, seed=3))
    assert not torch.equal(fastmalade.purify(images), fastmalade.purify(images))
