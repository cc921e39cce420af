"""scripts/evaluate_defenses.py and its table, and the shares of scripts/evaluate_overpowered.py, on a few digits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastmalade.attacks import CounterAttackA, CounterAttackB
from fastmalade.defenses.overpowered import CodePairs
from fastmalade.evaluation import accuracy, attacked_images
from fastmalade.evaluation.defenses import accuracy_table, compared_defenses

SCRIPTS = Path(__file__).parents[2] / "scripts"
TRANSFERRED = ["clean", "fgsm 0.1", "fgsm 0.3", "pgd 0.1", "pgd 0.2", "pgd 0.3"]
ADAPTIVE = ["pgd 0.3 bpda", "pgd 0.3 unrolled"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_columns_and_counts(make_defense, digits, fit_softmax, tmp_path):
    pytest.importorskip("foolbox")
    measure = load("evaluate_defenses").measure
    images, labels = digits[0][:4], digits[1][:4]
    classifier = fit_softmax(*(part[:300] for part in digits))
    defense = make_defense("inc")
    found = dict(
        measure("inc", defense, classifier, images, labels, adaptive=2, steps=2, earlier={}, cache=tmp_path / "cache")
    )
    assert list(found) == TRANSFERRED + ADAPTIVE
    assert [entry["n"] for entry in found.values()] == [4] * 6 + [2] * 2
    assert found["clean"]["correct"] == accuracy(classifier, defense(images, seed=0), labels)
    attacked = attacked_images(classifier, images, labels, "pgd", 0.2, seed=0)
    assert found["pgd 0.2"]["correct"] == accuracy(classifier, defense(attacked, seed=0), labels)
    # Columns that are there are not measured again; attacks that were finished are read from their checkpoints.
    assert (tmp_path / "cache" / "inc-pgd-0.3-bpda-2.safetensors").is_file()
    rest = dict(
        measure("inc", defense, classifier, images, labels, adaptive=2, steps=2,
                earlier={name: found[name] for name in (*TRANSFERRED, ADAPTIVE[0])}, cache=tmp_path / "cache")
    )  # fmt: skip
    assert list(rest) == ADAPTIVE[1:]
    assert rest[ADAPTIVE[1]]["correct"] == found[ADAPTIVE[1]]["correct"]


def test_a_run_of_fewer_images_goes_on_to_the_same_counts(make_defense, digits, fit_softmax, tmp_path, monkeypatch):
    pytest.importorskip("foolbox")
    script = load("evaluate_defenses")
    monkeypatch.setattr(script, "BATCH", 2)
    classifier = fit_softmax(*(part[:300] for part in digits))
    defense = make_defense("inc")

    def counts(images, adaptive, earlier):
        numbers = {"adaptive": adaptive, "steps": 2, "earlier": earlier, "cache": tmp_path}
        return list(script.measure("inc", defense, classifier, digits[0][:images], digits[1][:images], **numbers))

    whole = counts(5, 4, {})
    assert [entry["n"] for _, entry in whole] == [2, 4, 5] * 6 + [4] * 2
    fewer = counts(3, 1, {})
    more = counts(5, 4, dict(fewer))
    assert [entry["n"] for _, entry in more] == [5] * 6 + [4] * 2
    for column, entry in dict(whole).items():
        assert dict(more)[column]["correct"] == entry["correct"], column


def test_attacks_follow_the_defence(make_defense):
    adaptive_attacks = load("evaluate_defenses").adaptive_attacks
    replaced = make_defense("dip-inc")
    replaced.gradient = "bpda"
    assert list(adaptive_attacks(replaced, 3)) == ["pgd 0.3 bpda"]
    found = adaptive_attacks(make_defense("apudae-E"), 3)
    assert [type(attack) for attack in found.values()][2:] == [CounterAttackA, CounterAttackB]
    assert {attack.n_steps for attack in found.values()} == {3}


def test_table_says_for_how_many_images_a_figure_stands():
    entry = {"correct": 9, "n": 10, "seconds": 1.0}
    lines = accuracy_table({"a": {"clean": entry}, "b": {"clean": {"correct": 1, "n": 4}, "x": entry}}).splitlines()
    assert lines[0] == "| % | clean | x |"
    assert lines[2] == "| a | 90.0 [60, 98] |  |"
    assert lines[3] == "| b | 25.0 [5, 70] of 4 | 90.0 [60, 98] |"


def test_every_defence_is_there():
    names = set(compared_defenses())
    assert {"malade", "magnet", "defense-gan", "inc", "autoencode", "dip-inc"} <= names
    assert {f"apudae-{v}" for v in ("direct", *"ABCDEFG")} <= names


def test_shares_of_pairs_are_of_the_valid_ones():
    codes = torch.zeros(3, 2)
    pairs = CodePairs(
        first=codes,
        second=codes,
        distance=torch.tensor([0.0, 0.0, 1.0]),
        divergence=torch.tensor([1.0, 3.0, 50.0]),
        changed=torch.tensor([True, False, True]),
        valid=torch.tensor([True, True, False]),
    )
    describe = load("evaluate_overpowered").describe
    found = describe(pairs)
    assert found == {"pairs": 3, "valid": pytest.approx(2 / 3), "changed": 0.5, "divergence": 2.0}
    nothing = CodePairs(**{**vars(pairs), "valid": torch.zeros(3, dtype=torch.bool)})
    assert describe(nothing)["changed"] is None
