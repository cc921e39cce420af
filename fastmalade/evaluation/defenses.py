"""The defences that the accuracy table compares, and the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmalade.defenses import Apudae, AutoencodeAndClassify, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.defenses.base import Defense
from fastmalade.evaluation.accuracy import wilson_interval


def compared_defenses() -> dict[str, Defense]:
    """Every shipped defence by name, with the settings that the papers print where they print any.

    MALADE with N = 10, Defense-GAN with L = 200 and R = 10 (000), INC with 200 steps (004 has "typically more than
    2000"), DIP-INC with 100 steps, APuDAE's variants with n = 15 and alpha = 0.01 (003 Table 2).
    """
    apudae = Apudae.from_pretrained("apudae-mnist")
    assert isinstance(apudae, Apudae)
    found: dict[str, Defense] = {
        "malade": Defense.from_pretrained("malade-mnist"),
        "magnet": MagNet.from_pretrained("magnet-mnist"),
        "defense-gan": DefenseGan.from_pretrained("defense-gan-mnist"),
        "inc": InvertAndClassify.from_pretrained("inc-mnist"),
        "autoencode": AutoencodeAndClassify.from_pretrained("autoencode-mnist"),
        # Its default is BPDA; what an attack uses is for the attack to say.
        "dip-inc": DeepPrior(n_steps=100, gradient="unrolled").eval(),
    }
    for variant in ("direct", "A", "B", "C", "D", "E", "F", "G"):
        found[f"apudae-{variant}"] = Apudae(apudae.autoencoder, **(apudae.settings() | {"variant": variant})).eval()
    return found


def accuracy_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Percentages with 95% intervals in Markdown, one line per defence.

    Args:
        results: defence -> column -> {"correct": right answers, "n": out of so many}. Cells with fewer images than
            the largest say how many they stand for.
    """
    columns = list(dict.fromkeys(column for entries in results.values() for column in entries))
    most = max((entry["n"] for entries in results.values() for entry in entries.values()), default=0)
    lines = [" | ".join(["| %", *columns]) + " |", "| --- " + "| ---: " * len(columns) + "|"]
    for name, entries in results.items():
        cells = [_cell(entries[column], most) if column in entries else "" for column in columns]
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
    return "\n".join(lines)


def substitute_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Shares of the valid images that fool the defence, in Markdown: one line per defence and attacker.

    Args:
        results: defence -> attacker -> {"attacks": {column: {"valid": n, "fooled": n, "fooled_substitute": n}}}, as
            scripts/evaluate_substitutes.py writes it.
    """
    lines: list[str] = []
    for name, attackers in results.items():
        for attacker, entry in attackers.items():
            attacks = entry["attacks"]
            if not lines:
                lines = [
                    " | ".join(["| fooled", "attacker", *attacks]) + " |",
                    "| --- | --- " + "| ---: " * len(attacks) + "|",
                ]
            shares = (_share(counts["fooled"], counts["valid"]) for counts in attacks.values())
            lines.append(" | ".join([f"| {name}", attacker, *shares]) + " |")
    return "\n".join(lines)


def _share(count: int, among: int) -> str:
    return f"{100 * count / among:.0f}% of {among}" if among else "no valid image"


def _cell(entry: Mapping[str, Any], most: int) -> str:
    correct, n = entry["correct"], entry["n"]
    low, high = wilson_interval(correct, n)
    among = "" if n == most else f" of {n}"
    return f"{100 * correct / n:.1f} [{100 * low:.0f}, {100 * high:.0f}]{among}"
