"""The evaluation scripts of defences and their tables, on a few digits."""

from __future__ import annotations

import dataclasses

import evaluate_defenses
import evaluate_overpowered
import evaluate_substitutes
import pytest
import torch
from defense_runs import accuracy_table, substitute_table

from fastmalade.attacks import CounterAttackA, CounterAttackB
from fastmalade.attacks.overpowered import CodePairs
from fastmalade.evaluation import accuracy, attacked_images
from fastmalade.evaluation.defenses import compared_defenses

TRANSFERRED = ["clean", "fgsm 0.1", "fgsm 0.3", "pgd 0.1", "pgd 0.2", "pgd 0.3"]
ADAPTIVE = ["pgd 0.3 bpda", "pgd 0.3 unrolled"]


@pytest.fixture
def classifier(digits, fit_softmax):
    return fit_softmax(*(part[:300] for part in digits))


def test_columns_and_counts(classifier, make_defense, digits, tmp_path):
    pytest.importorskip("foolbox")
    images, labels = digits[0][:4], digits[1][:4]
    defense = make_defense("inc")
    plan = evaluate_defenses.Plan(classifier, images, labels, adaptive=2, steps=2, cache=tmp_path / "cache")
    found = dict(evaluate_defenses.measure("inc", defense, plan, {}))
    assert list(found) == TRANSFERRED + ADAPTIVE
    assert [entry["n"] for entry in found.values()] == [4] * 6 + [2] * 2
    assert found["clean"]["correct"] == accuracy(classifier, defense(images, seed=0), labels)
    attacked = attacked_images(classifier, images, labels, "pgd", 0.2, seed=0)
    assert found["pgd 0.2"]["correct"] == accuracy(classifier, defense(attacked, seed=0), labels)
    # Columns that are there are not measured again; attacks that were finished are read from their checkpoints.
    assert (tmp_path / "cache" / "inc-pgd-0.3-bpda-2.safetensors").is_file()
    rest = dict(
        evaluate_defenses.measure("inc", defense, plan, {name: found[name] for name in (*TRANSFERRED, ADAPTIVE[0])})
    )
    assert list(rest) == ADAPTIVE[1:]
    assert rest[ADAPTIVE[1]]["correct"] == found[ADAPTIVE[1]]["correct"]
    asked = ["fgsm 0.3", ADAPTIVE[0]]
    some = dict(evaluate_defenses.measure("inc", defense, dataclasses.replace(plan, columns=asked), {}))
    assert list(some) == asked


def test_an_unknown_column_is_refused(monkeypatch, capsys, tmp_path):
    output = tmp_path / "found.json"
    monkeypatch.setattr("sys.argv", ["evaluate_defenses.py", "--columns", "clean,pgd 9", "--output", str(output)])
    with pytest.raises(SystemExit):
        evaluate_defenses.main()
    assert "--columns: expected any of clean, counter A 0.1" in capsys.readouterr().err
    assert not output.exists()


def test_a_run_of_fewer_images_goes_on_to_the_same_counts(classifier, make_defense, digits, tmp_path, monkeypatch):
    pytest.importorskip("foolbox")
    monkeypatch.setattr(evaluate_defenses, "BATCH", 2)
    defense = make_defense("inc")

    def counts(images, adaptive, earlier):
        shown = (part[:images] for part in digits)
        plan = evaluate_defenses.Plan(classifier, *shown, adaptive=adaptive, steps=2, cache=tmp_path)
        return list(evaluate_defenses.measure("inc", defense, plan, earlier))

    whole = counts(5, 4, {})
    assert [entry["n"] for _, entry in whole] == [2, 4, 5] * 6 + [4] * 2
    fewer = counts(3, 1, {})
    more = counts(5, 4, dict(fewer))
    assert [entry["n"] for _, entry in more] == [5] * 6 + [4] * 2
    for column, entry in dict(whole).items():
        assert dict(more)[column]["correct"] == entry["correct"], column


def test_attacks_follow_the_defence(make_defense):
    adaptive_attacks = evaluate_defenses.adaptive_attacks
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
    describe = evaluate_overpowered.describe
    found = describe(pairs)
    assert found == {"pairs": 3, "valid": pytest.approx(2 / 3), "changed": 0.5, "divergence": 2.0}
    nothing = CodePairs(**{**vars(pairs), "valid": torch.zeros(3, dtype=torch.bool)})
    assert describe(nothing)["changed"] is None


def test_attackers_without_gradients(make_defense, digits, fit_softmax, tmp_path):
    images, labels = digits
    defense = make_defense("malade")
    classifier = fit_softmax(images[:300], labels[:300])
    models = evaluate_substitutes.substitutes(
        "malade",
        defense,
        classifier,
        images[300:364],
        evaluate_substitutes.Training(purified=32, rounds=2, epochs=1, combined_epochs=2, cache=tmp_path),
    )
    assert list(models) == ["bare", "substitute", "combined"]
    assert models["bare"]() is classifier
    for name in ("substitute", "combined"):
        first, again = models[name](), models[name]()
        assert torch.equal(first(images[:5]), again(images[:5]))
        assert not torch.equal(first(images[:5]), classifier(images[:5]))
        assert (tmp_path / f"malade-{name}.safetensors").is_file()
    found = evaluate_substitutes.measure(classifier, defense, classifier, images[:20], labels[:20])
    assert list(found) == [
        f"{attack} {epsilon:g}" for attack in ("fgsm", "bim") for epsilon in evaluate_substitutes.EPSILONS
    ]
    for column, counts in found.items():
        assert 0 <= counts["fooled"] <= counts["valid"] <= 20, column
    # A linear classifier attacked as it is loses more digits the larger the ball.
    assert found["bim 0.1"]["fooled_substitute"] <= found["bim 0.3"]["fooled_substitute"] == found["bim 0.3"]["valid"]


def test_substitute_table_counts_valid_digits():
    counts = {"valid": 8, "fooled": 2, "fooled_substitute": 8}
    none = {"valid": 0, "fooled": 0, "fooled_substitute": 0}
    lines = substitute_table(
        {
            "inc": {
                "bare": {"attacks": {"fgsm 0.1": counts, "bim 0.1": none}},
                "combined": {"attacks": {"fgsm 0.1": none, "bim 0.1": counts}},
            }
        }
    ).splitlines()
    assert lines[0] == "| fooled | attacker | fgsm 0.1 | bim 0.1 |"
    assert lines[2] == "| inc | bare | 25% of 8 | no valid image |"
    assert lines[3] == "| inc | combined | no valid image | 25% of 8 |"
