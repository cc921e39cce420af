"""The accuracy table of scripts/evaluate_defenses.py, on a few digits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fastmalade.evaluation import accuracy

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_defenses.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_defenses", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_columns_and_counts(script, make_defense, digits, fit_softmax):
    pytest.importorskip("foolbox")
    images, labels = digits[0][:4], digits[1][:4]
    classifier = fit_softmax(*(part[:300] for part in digits))
    exact, replaced = make_defense("inc"), make_defense("dip-inc")
    replaced.gradient = "bpda"
    results = {
        name: script.measure(name, defense, classifier, images, labels, steps=2)
        for name, defense in (("inc", exact), ("dip-inc", replaced))
    }
    counts = results["inc"]["correct"]
    assert set(counts) == {"n", "clean", "fgsm 0.1", "fgsm 0.3", "pgd 0.1", "pgd 0.2", "pgd 0.3"} | {
        "pgd 0.3 bpda",
        "pgd 0.3 unrolled",
    }
    assert counts["clean"] == accuracy(classifier, exact(images, seed=0), labels)
    assert "pgd 0.3 unrolled" not in results["dip-inc"]["correct"]
    lines = script.table(results).splitlines()
    assert lines[0].startswith("| defence | clean | fgsm 0.1 |")
    assert lines[2].startswith(f"| inc | {100 * counts['clean'] / 4:.1f} [")
    assert lines[3].endswith("|  |")


def test_every_defence_is_there(script):
    names = set(script.defenses())
    assert {"malade", "magnet", "defense-gan", "inc", "autoencode", "dip-inc"} <= names
    assert {f"apudae-{v}" for v in ("direct", *"ABCDEFG")} <= names
