"""The reports of shards as one report."""

from __future__ import annotations

from collections.abc import Sequence

from fastmalade.suites.report import Check, EvaluationReport, Row, worst_first


def merge_reports(reports: Sequence[EvaluationReport]) -> EvaluationReport:
    """Put the reports of all shards of one evaluation together.

    Counts add up. A check has the worst status that it has in any shard, with the figure it has there; its explanation
    says in how many shards it has that status.

    Args:
        reports: of the shards, in any order.

    Raises:
        ValueError: none; reports of different models, suites or settings; images that are missing or there twice.
    """
    if not reports:
        raise ValueError("reports: expected at least one, got none")
    first, *others = ordered = sorted(reports, key=lambda report: report.settings["images"])
    for other in others:
        for name in ("model", "suite", "classes"):
            if getattr(other, name) != getattr(first, name):
                raise ValueError(
                    f"{name}: expected {getattr(first, name)!r} in all reports, got {getattr(other, name)!r}"
                )
        differing = [
            name for name in ("seed", "epsilon", "norm", "judge_chains")
            if other.settings[name] != first.settings[name]
        ]  # fmt: skip
        if differing:
            raise ValueError(f"settings: expected the same in all reports, got different {', '.join(differing)}")
    end = 0
    for report in ordered:
        start, stop = report.settings["images"]
        if start != end:
            raise ValueError(f"images: expected shards that follow each other, got one from {start} after {end} images")
        end = stop
    names = list(dict.fromkeys(row.attack for report in ordered for row in report.rows))
    return EvaluationReport(
        model=first.model,
        suite=first.suite,
        purpose=first.purpose,
        checks=worst_first(_merged_checks(ordered)),
        rows=tuple(_sum([row for report in ordered for row in report.rows if row.attack == name]) for name in names),
        classes=first.classes,
        forecast_seconds=round(sum(report.forecast_seconds for report in ordered), 1),
        seconds=round(sum(report.seconds for report in ordered), 1),
        settings=first.settings | {"images": [0, end], "shards": len(ordered)},
    )


def _sum(rows: Sequence[Row]) -> Row:
    n = sum(row.n for row in rows)
    gradients = sum(row.gradients_per_image * row.n for row in rows) / n
    return Row(
        **{name: getattr(rows[0], name) for name in ("attack", "knows", "gradient", "epsilon", "norm", "queries")},
        n=n,
        **{name: sum(getattr(row, name) for row in rows) for name in ("one_shot", "worst", "majority")},
        gradients_per_image=round(gradients, 1),
        seconds=round(sum(row.seconds for row in rows), 1),
    )


def _merged_checks(reports: Sequence[EvaluationReport]) -> list[Check]:
    found = []
    for name in dict.fromkeys(check.name for report in reports for check in report.checks):
        checks = [check for report in reports for check in report.checks if check.name == name]
        worst = worst_first(checks)[0]
        same = sum(check.status == worst.status for check in checks)
        note = f" ({worst.status} in {same} of {len(checks)} shards)"
        found.append(Check(name, worst.status, worst.figure, worst.explanation + note))
    return found
