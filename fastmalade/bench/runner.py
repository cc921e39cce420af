"""A whole run: verify, choose forms, time in turns, and keep what is done in a file after every batch size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmalade.bench import ceilings, machine
from fastmalade.bench.contenders import Chain, Contender, Native
from fastmalade.bench.flops import flops_per_image
from fastmalade.bench.results import new_result, save
from fastmalade.bench.settings import Settings, shape_text
from fastmalade.bench.task import Task, make_images, make_task
from fastmalade.bench.timing import interleaved
from fastmalade.bench.verify import make_cotangent, verify, verify_gradient

FORMAT = 1
SCREENING_SECONDS = 0.5
Report = Callable[[str, float], None]
"""Called with what is going on and the part of the whole run that is done, 0 to 1."""


def run(
    settings: Settings,
    *,
    output: Path | None = None,
    resume: bool = False,
    contenders: Sequence[Contender] | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Measure all cells of ``settings``.

    The process is held to as many processors as there are threads. Every contender is verified on every batch size
    before it is timed; one that fails is reported and not timed.

    Args:
        settings: what to measure.
        output: JSON file, rewritten after every batch size, so that an interrupted run leaves what it has done.
        resume: keep the cells of ``output`` that were measured on this machine, at this commit, with the same versions,
            threads, seconds and kind of work.
        contenders: in place of those of the settings.
        report: told about progress.

    Returns:
        The result, as written to ``output``: JSON values, times in microseconds per image.

    Raises:
        ValueError: settings that cannot be met on this machine.
    """
    chosen = list(settings.contenders() if contenders is None else contenders)
    with machine.pinned(settings.threads) as processors:
        state = _skeleton(settings, chosen, processors)
        if resume and output is not None and output.is_file():
            state["cells"] = _kept(json.loads(output.read_text(encoding="utf-8")), state)
        groups = [(s, n, b) for s in settings.shapes for n in settings.steps for b in settings.batches]
        try:
            for done, (shape, steps, batch) in enumerate(groups):
                task = make_task(shape, batch, steps, settings.threads)
                existing = {cell["contender"] for cell in state["cells"] if _key(cell) == _task_key(task)}
                missing = [c for c in chosen if c.key not in existing and state["contenders"][c.key]["reason"] is None]
                if missing:
                    told = None if report is None else partial(_scaled, report, done, len(groups), task)
                    state["cells"] += _measure(task, missing, settings, told)
                    save(state, output)
            state["complete"] = True
        finally:
            # Nothing was measured: an older file is worth more than an empty one.
            if state["cells"] or (output is not None and not output.exists()):
                save(state, output)
    return state


def _skeleton(settings: Settings, contenders: Sequence[Contender], processors: list[int] | None) -> dict[str, Any]:
    result = new_result("fastmalade bench", FORMAT, settings.to_json())
    described = {}
    for contender in contenders:
        reason = contender.unavailable_reason()
        if reason is None and settings.gradient and not contender.differentiable:
            reason = "has no gradient"
        described[contender.key] = {
            "label": contender.label,
            "peer": contender.is_peer,
            "rewritten": contender.is_rewritten,
            "threads": contender.threads if isinstance(contender, Native) and contender.threads else settings.threads,
            "reason": reason,
        }
        if reason is None:
            result["versions"].update(contender.versions())
    result["machine"]["pinned_to"] = processors
    return {
        **result,
        "comparable": settings.comparable(),
        "ceilings": {"copy_bytes_per_second": ceilings.copy_bandwidth()},
        "contenders": described,
    }


def _measure(
    task: Task, contenders: Sequence[Contender], settings: Settings, report: Callable[[str, float], None] | None
) -> list[dict[str, Any]]:
    """Cells of one batch: the ones that failed, and the ones timed in turns."""
    images = make_images(task)
    cotangent = make_cotangent(task, images) if settings.gradient else None
    cells: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for index, contender in enumerate(contenders):
        if report is not None:
            report(f"verifying {contender.key}", 0.5 * index / len(contenders))
        cell, chain = _prepared(contender, task, images, cotangent, settings)
        cells[contender.key] = cell
        if chain is not None:
            calls[contender.key] = partial(chain, images)
    if calls:
        rates = {c.key: ceilings.fma_ceiling(c.isa_in_use()) for c in contenders if isinstance(c, Native)}
        told = None if report is None else lambda part: report("timing", 0.5 + 0.5 * part)
        for key, summary in interleaved(calls, task.batch, seconds=settings.seconds, progress=told).items():
            cells[key]["us_per_image"] = dataclasses.asdict(summary)
            if rates.get(key) is not None:
                cells[key]["fma_ceiling_flops_per_second"] = rates[key]
    return list(cells.values())


def _prepared(
    contender: Contender, task: Task, images: np.ndarray, cotangent: np.ndarray | None, settings: Settings
) -> tuple[dict[str, Any], Chain | None]:
    """A cell without times, and the fastest form that passed verification."""
    shape, steps, batch = _task_key(task)
    cell: dict[str, Any] = {"contender": contender.key, "shape": shape, "steps": steps, "batch": batch}
    if isinstance(contender, Native):
        cell["isa"] = contender.isa_in_use()
    cell["flops_per_image"] = flops_per_image(*task.shape, *task.hidden, task.n_steps)
    passed: dict[str, tuple[Chain, dict[str, Any]]] = {}
    failed = {}
    for form in contender.forms:
        try:
            if cotangent is None:
                found = verify(contender, form, task, images)
                chain = contender.prepare(task, form)
            else:
                found = verify_gradient(contender, form, task, images, cotangent)
                chain = contender.prepare_gradient(task, form, cotangent)
        except Exception as error:  # whatever a library throws is its result here, and is printed
            failed[form] = _one_line(error)
            continue
        passed[form] = (chain, dataclasses.asdict(found))
    if failed:
        cell["failed_forms"] = failed
    if not passed:
        return cell, None
    best = next(iter(passed))
    if len(passed) > 1:
        calls = {form: partial(chain, images) for form, (chain, _) in passed.items()}
        screened = interleaved(calls, task.batch, seconds=min(settings.seconds, SCREENING_SECONDS))
        # Few calls: their fast end tells more about the form, and less about the machine, than their median.
        best = min(screened, key=lambda form: screened[form].low)
        cell["screening_us_per_image"] = {form: summary.low for form, summary in screened.items()}
    chain, cell["verification"] = passed[best]
    cell["form"] = best
    return cell, chain


def _kept(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Cells of an earlier result that belong with the new one; says in its warnings why there are none."""
    if old.get("kind") != new["kind"] or old.get("format") != new["format"]:
        raise ValueError(f"expected a result of fastmalade bench, format {FORMAT}, to go on from, got another file")
    differing = [name for name in ("comparable", "commit") if old[name] != new[name]]
    if old["machine"]["processor"] != new["machine"]["processor"]:
        differing.append("processor")
    if any(old["versions"].get(name, version) != version for name, version in new["versions"].items()):
        differing.append("versions")
    if differing:
        new["warnings"].append(f"nothing was kept of the earlier result: {', '.join(differing)} differ")
        return []
    new["warnings"] += [warning for warning in old["warnings"] if warning not in new["warnings"]]
    new["contenders"] = {**old["contenders"], **new["contenders"]}
    new["versions"] = {**old["versions"], **new["versions"]}
    # What failed is tried again: the reason may be gone.
    return [cell for cell in old["cells"] if "us_per_image" in cell]


def _key(cell: dict[str, Any]) -> tuple[str, int, int]:
    return cell["shape"], cell["steps"], cell["batch"]


def _task_key(task: Task) -> tuple[str, int, int]:
    return shape_text(task.shape), task.n_steps, task.batch


def _scaled(report: Report, done: int, groups: int, task: Task, what: str, part: float) -> None:
    shape, steps, batch = _task_key(task)
    report(f"{shape}, N={steps}, batch {batch}: {what}", (done + part) / groups)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
