"""Tables of a result for people: contenders down, batch sizes across, microseconds per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

NOT_MEASURED = "not measured"


class Grid:
    """The cells of one shape and number of steps, by contender and batch.

    Attributes:
        shape: "1x28x28".
        steps: N.
        batches: batch sizes, ascending.
        contenders: keys in the order of the result, those that have a cell.
    """

    def __init__(self, result: dict[str, Any], shape: str, steps: int) -> None:
        self.result, self.shape, self.steps = result, shape, steps
        self._cells = {
            (cell["contender"], cell["batch"]): cell
            for cell in result["cells"]
            if (cell["shape"], cell["steps"]) == (shape, steps)
        }
        self.batches = sorted({batch for _, batch in self._cells})
        self.contenders = [key for key in result["contenders"] if any(k == key for k, _ in self._cells)]

    def cell(self, contender: str, batch: int) -> dict[str, Any] | None:
        """The cell, or None if there is none."""
        return self._cells.get((contender, batch))

    def median(self, contender: str, batch: int) -> float | None:
        """Median microseconds per image, or None where nothing was timed."""
        cell = self.cell(contender, batch)
        return cell["us_per_image"]["median"] if cell is not None and "us_per_image" in cell else None

    def label(self, contender: str) -> str:
        """Name for tables."""
        return self.result["contenders"][contender]["label"]

    def native(self) -> list[str]:
        """Keys of the native contenders on all threads of the run."""
        return [key for key in self._all_native() if self._threads(key) == self.result["settings"]["threads"]]

    def scaling(self) -> list[tuple[str, str]]:
        """Keys of native contenders on all threads, each with the key of the same contender on one thread."""
        single = {self._isa(key): key for key in self._all_native() if self._threads(key) == 1}
        return [(key, single[self._isa(key)]) for key in self.native() if single.get(self._isa(key), key) != key]

    def _all_native(self) -> list[str]:
        return [key for key in self.contenders if not self.result["contenders"][key]["peer"]]

    def _threads(self, contender: str) -> int:
        threads: int = self.result["contenders"][contender]["threads"]
        return threads

    def _isa(self, native: str) -> str:
        return next(cell["isa"] for (key, _), cell in self._cells.items() if key == native)

    def best_peer(self, batch: int, *, rewritten: bool) -> tuple[str, float] | None:
        """Fastest peer and its median; of those with the graph as it is or of the rewritten ones."""
        found = [
            (median, key)
            for key in self.contenders
            if self.result["contenders"][key]["peer"] and self.result["contenders"][key]["rewritten"] == rewritten
            and (median := self.median(key, batch)) is not None
        ]  # fmt: skip
        return None if not found else (min(found)[1], min(found)[0])

    def ratio(self, native: str, batch: int, *, rewritten: bool = False) -> float | None:
        """Times that ``native`` is faster than the best peer."""
        best, own = self.best_peer(batch, rewritten=rewritten), self.median(native, batch)
        return None if best is None or own is None else best[1] / own

    def fraction(self, native: str, batch: int) -> float | None:
        """Part of the multiply-add ceiling measured in the same run that ``native`` reaches; 1 is the ceiling."""
        cell, own = self.cell(native, batch), self.median(native, batch)
        ceiling = None if cell is None else cell.get("fma_ceiling_flops_per_second")
        if cell is None or own is None or ceiling is None or self.result["settings"]["gradient"]:
            return None
        return cell["flops_per_image"] / (own * 1e-6) / (ceiling * self.result["settings"]["threads"])


def grids(result: dict[str, Any]) -> list[Grid]:
    """One grid for each shape and number of steps, in the order of the cells."""
    keys = dict.fromkeys((cell["shape"], cell["steps"]) for cell in result["cells"])
    return [Grid(result, shape, steps) for shape, steps in keys]


def rows(grid: Grid) -> list[list[str]]:
    """Text of the table, a row for each contender and then ratios and fractions; the first column is the name."""
    table = [
        [grid.label(key), *(_time(grid.median(key, batch), grid.cell(key, batch)) for batch in grid.batches)]
        for key in grid.contenders
    ]
    described = [grid.result["contenders"][key] for key in grid.contenders]
    kinds = {peer["rewritten"] for peer in described if peer["peer"]}
    for key in grid.native():
        for rewritten, name in ((False, "best peer"), (True, "best rewritten peer")):
            if rewritten not in kinds:
                continue
            ratios = [grid.ratio(key, batch, rewritten=rewritten) for batch in grid.batches]
            table.append([f"{key} vs {name}", *("-" if r is None else f"{r:.1f}x" for r in ratios)])
    for key, single in grid.scaling():
        medians = [(grid.median(single, batch), grid.median(key, batch)) for batch in grid.batches]
        texts = ["-" if one is None or several is None else f"{one / several:.2f}x" for one, several in medians]
        table.append([f"{key} vs {single}", *texts])
    if not grid.result["settings"]["gradient"]:
        for key in grid.native():
            parts = [grid.fraction(key, batch) for batch in grid.batches]
            texts = [NOT_MEASURED if p is None else f"{100 * p:.0f}%" for p in parts]
            table.append([f"{key}, part of the FMA ceiling", *texts])
    return table


def tables(result: dict[str, Any]) -> list[Table]:
    """The same as rich tables."""
    made = []
    for grid in grids(result):
        table = Table(title=f"{grid.shape}, N={grid.steps}: microseconds per image, medians")
        table.add_column("batch")
        for batch in grid.batches:
            table.add_column(str(batch), justify="right", no_wrap=True)
        for row in rows(grid):
            # Names such as native[avx2] are not markup.
            table.add_row(*map(escape, row))
        made.append(table)
    return made


def notes(result: dict[str, Any]) -> list[str]:
    """Sentences below the tables: what was measured, what is missing and why, and what makes it doubtful."""
    settings, facts = result["settings"], result["machine"]
    what = "gradient with respect to the images, forward pass included" if settings["gradient"] else "forward"
    pinned = facts["pinned_to"]
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    held = "processors not fixed" if pinned is None else f"the process held to processors {_listed(pinned)}"
    commit = result["commit"]
    identity = (
        "not a git tree" if commit["id"] is None else commit["id"][:12] + (" + changes" if commit["dirty"] else "")
    )
    bandwidth = result["ceilings"]["copy_bytes_per_second"] / 1e9
    lines = [
        f"{what}, noise included; {threads}, {held}; {facts['processor']}; commit {identity}",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        f"copy bandwidth of one core {bandwidth:.1f} GB/s (read and write); FMA ceiling {_ceilings(result)}",
    ]
    for key, contender in result["contenders"].items():
        if contender["reason"] is not None:
            lines.append(f"{key}: not timed: {contender['reason']}")
    failures: dict[str, list[tuple[int, str]]] = {}
    for cell in result["cells"]:
        for form, reason in cell.get("failed_forms", {}).items():
            where = f"{cell['contender']}{f' ({form})' if form else ''}, {cell['shape']}, N={cell['steps']}"
            failures.setdefault(where, []).append((cell["batch"], reason))
    for where, found in failures.items():
        # One line for all batches of a form, with the first one's reason: the file has the others'.
        batches = ", ".join(str(batch) for batch, _ in found)
        lines.append(f"{where}, batch {batches}: FAILED and not timed: {found[0][1]}")
    lines += [f"warning: {warning}" for warning in result["warnings"] + unsteady(result)]
    if not result["complete"]:
        lines.append("warning: the run was not finished")
    return lines


def unsteady(result: dict[str, Any]) -> list[str]:
    """A sentence where the slowest tenth of the calls took much longer than the fastest, which says: busy machine."""
    timed = [cell for cell in result["cells"] if "us_per_image" in cell]
    spread = [(cell["us_per_image"]["high"] / cell["us_per_image"]["low"], cell) for cell in timed]
    bad = [(ratio, cell) for ratio, cell in spread if ratio > 1.3]
    if not bad:
        return []
    ratio, cell = max(bad, key=lambda pair: pair[0])
    return [
        f"{len(bad)} of {len(timed)} cells were unsteady: the 90% quantile of {cell['contender']} at batch "
        f"{cell['batch']} is {ratio:.1f} times its 10% quantile"
    ]


def _ceilings(result: dict[str, Any]) -> str:
    rates: dict[str, list[float]] = {}
    for cell in result["cells"]:
        if "fma_ceiling_flops_per_second" in cell:
            rates.setdefault(cell["isa"], []).append(cell["fma_ceiling_flops_per_second"] / 1e9)
    if not rates:
        return NOT_MEASURED
    texts = (f"{isa} {min(values):.1f} to {max(values):.1f} GFLOP/s" for isa, values in rates.items())
    return ", ".join(texts) + " on one core"


def _time(median: float | None, cell: dict[str, Any] | None) -> str:
    if median is not None:
        return f"{median:.0f}" if median >= 100 else f"{median:.1f}"
    return "-" if cell is None else "failed"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
