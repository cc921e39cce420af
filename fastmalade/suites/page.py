"""A report as one HTML page that needs nothing else: verdict, accuracies, curves, images, checks."""

from __future__ import annotations

import base64
import html
import math
import os
import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmalade.attacks import AttackResult
from fastmalade.evaluation.accuracy import percent, wilson_interval
from fastmalade.files import write_bytes
from fastmalade.suites.report import EvaluationReport, Row

_MEANING = {
    "PASS": "The checks found nothing wrong with this evaluation: the accuracies are what these attacks left.",
    "WARN": "The accuracies can be read with care: see the checks marked WARN, each says what it puts in doubt.",
    "FAIL": "The accuracies are no evidence of robustness: see the checks marked FAIL.",
    "N/A": "Nothing was checked.",
}
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--bad:#b3261e;--warn:#9a6700;--good:#1a7f37}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
td,th{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.number,th.number{text-align:right;white-space:nowrap}
.FAIL{color:var(--bad);font-weight:600}.WARN{color:var(--warn);font-weight:600}.PASS{color:var(--good)}
.verdict{font-size:1.6rem}svg{max-width:100%;height:auto}svg text{fill:currentColor;font:12px system-ui,sans-serif}
.digits{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
.digits img{width:31%;image-rendering:pixelated}figure{margin:0}figcaption{font-size:.8rem}
"""
_SHOWN = 12


def write_page(report: EvaluationReport, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all; images and curves are there where the report still has its results."""
    write_bytes(path, page(report).encode())


def page(report: EvaluationReport) -> str:
    """The page as text."""
    text = html.escape
    parts = [
        f"<p class='verdict {report.verdict}'>{report.verdict}</p><p>{_MEANING[report.verdict]}</p>",
        f"<p>{text(report.model)}, suite <b>{text(report.suite)}</b>: {text(report.purpose)}. "
        f"{report.rows[0].n} images, {report.seconds:.0f} s.</p>",
        "<h2>What the attacks left</h2>", _rows(report), _curves(report), _grid(report),
        "<h2>Can this be believed?</h2>", _checks(report),
        f"<h2>How it was made</h2><p>Seed {report.settings['seed']}, {text(str(report.settings['norm']))} "
        f"{report.settings['epsilon']:g}. report.json beside this page has the settings of every attack; "
        "<code>fastmalade.evaluate</code> with the same model, images, suite and seed prints the same figures.</p>",
    ]  # fmt: skip
    title = text(f"{report.verdict}: {report.model}, {report.suite}")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>Evaluation of a defence</h1>"
        + "".join(parts) + "</body></html>\n"
    )  # fmt: skip


def _rows(report: EvaluationReport) -> str:
    head = "".join(
        f"<th class='{kind}'>{name}</th>"
        for name, kind in (
            ("attack", ""), ("knows", ""), ("radius", "number"), ("most queries right, %", "number"),
            ("one query, %", "number"), ("all queries, %", "number"),
        )
    )  # fmt: skip
    body = []
    for row in report.rows:
        radius = f"{row.epsilon:.3g} {row.norm}" if row.epsilon > 0 else ""
        cells = [percent(getattr(row, rule), row.n) for rule in ("majority", "one_shot", "worst")]
        numbers = "".join(f"<td class='number'>{cell}</td>" for cell in [radius, *cells])
        name = "clean images" if row.attack == "none" else row.attack
        body.append(f"<tr><td>{html.escape(name)}</td><td>{html.escape(row.knows)}</td>{numbers}</tr>")
    note = (
        f"<p>95% Wilson intervals. Each image is queried {report.rows[0].queries} times with noise that no attack has "
        "seen; attacks go for the majority and leave an image when they have it.</p>"
    )
    return f"<div class='table'><table><tr>{head}</tr>{''.join(body)}</table></div>{note}"


def _checks(report: EvaluationReport) -> str:
    rows = "".join(
        f"<tr><td class='{check.status}'>{check.status}</td><td>{html.escape(check.name)}</td>"
        f"<td>{html.escape(check.figure)}</td><td>{html.escape(check.explanation)}</td></tr>"
        for check in report.checks
    )
    return f"<div class='table'><table><tr><th></th><th>check</th><th>found</th><th>why</th></tr>{rows}</table></div>"


def _curves(report: EvaluationReport) -> str:
    """Accuracy over the radius, and the loss over the steps of the main attack."""
    clean, *others = report.rows
    # Rows of one ball and one rule of judging: known noise is judged by one query. At one radius the strongest counts.
    exact = [
        row for row in others if row.gradient == "unrolled" and (row.norm, row.queries) == (clean.norm, clean.queries)
    ]
    radii = sorted({row.epsilon for row in exact})
    strongest = [min((row for row in exact if row.epsilon == r), key=lambda row: row.majority / row.n) for r in radii]
    by_radius = [clean, *strongest]
    drawn = []
    if len(by_radius) > 2:
        drawn.append(f"<figure><figcaption>Accuracy over the radius, exact gradient</figcaption>{_accuracy(by_radius)}"
                     "</figure>")  # fmt: skip
    main = max(
        (r for r in report.results.values() if r.settings["gradient"] == "unrolled"),
        key=lambda r: (r.epsilon == report.settings["epsilon"], r.losses.shape[0], r.losses.shape[1]),
        default=None,
    )
    if main is not None and main.losses.shape[1] > 1:
        drawn.append(f"<figure><figcaption>Loss over the steps: median and quartiles of the images that held, first "
                     f"start</figcaption>{_loss(main)}</figure>")  # fmt: skip
    return f"<div>{''.join(drawn)}</div>" if drawn else ""


def _accuracy(rows: Sequence[Row]) -> str:
    points = [(row.epsilon, 100 * row.accuracy()) for row in rows]
    intervals = [wilson_interval(row.majority, row.n) for row in rows]
    bounds = [(row.epsilon, 100 * low, 100 * high) for row, (low, high) in zip(rows, intervals, strict=True)]
    return _chart(points, bounds, "radius", "accuracy, %", top=100.0)


def _loss(result: AttackResult) -> str:
    losses = result.losses[0].double()
    held = losses[:, ~result.success] if bool((~result.success).any()) else losses
    quartiles = torch.nanquantile(held, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=1)
    keep = [k for k in range(len(losses)) if math.isfinite(float(quartiles[1, k]))]
    points = [(float(k), float(quartiles[1, k])) for k in keep]
    bounds = [(float(k), float(quartiles[0, k]), float(quartiles[2, k])) for k in keep]
    return _chart(points, bounds, "step", "loss", top=max(b[2] for b in bounds) or 1.0)


def _chart(
    points: Sequence[tuple[float, float]], bounds: Sequence[tuple[float, float, float]], x: str, y: str, *, top: float
) -> str:
    """A line with a band, as SVG."""
    width, height, left, below, above = 460, 240, 58, 40, 12
    furthest = max(max(p[0] for p in points), 1e-9)

    def place(u: float, v: float) -> str:
        across = left + u / furthest * (width - left - 16)
        return f"{across:.1f},{above + (1 - v / top) * (height - below - above):.1f}"

    line = " ".join(place(*point) for point in points)
    band = " ".join([*(place(u, high) for u, _, high in bounds), *(place(u, low) for u, low, _ in reversed(bounds))])
    marks = []
    for share in (0.0, 0.5, 1.0):
        across, up = place(furthest * share, 0.0).split(",")[0], place(0.0, top * share).split(",")[1]
        marks.append(f"<text x='{across}' y='{height - 22}' text-anchor='middle'>{furthest * share:.3g}</text>")
        marks.append(f"<text x='{left - 6}' y='{float(up) + 4:.1f}' text-anchor='end'>{top * share:.3g}</text>")
        marks.append(f"<line x1='{left}' x2='{width - 16}' y1='{up}' y2='{up}' stroke='currentColor' opacity='.15'/>")
    return (
        f"<svg viewBox='0 0 {width} {height}' width='{width}' role='img' aria-label='{y} over {x}'>"
        f"<polygon points='{band}' fill='#1b6ca8' opacity='.2'/>"
        f"<polyline points='{line}' fill='none' stroke='#1b6ca8' stroke-width='2'/>{''.join(marks)}"
        f"<text x='{(left + width) / 2}' y='{height - 5}' text-anchor='middle'>{x}</text>"
        f"<text x='12' y='{height / 2}' transform='rotate(-90 12 {height / 2})' text-anchor='middle'>{y}</text></svg>"
    )


def _grid(report: EvaluationReport) -> str:
    """Some images that the exact gradient turned and some that held: original, perturbation, attacked."""
    found = [r for r in report.results.values()
             if r.settings["gradient"] == "unrolled" and r.epsilon == report.settings["epsilon"]]  # fmt: skip
    if not found or report.images is None or report.labels is None:
        return ""
    result = max(found, key=lambda r: r.losses.shape[0] * r.losses.shape[1])
    chosen = [*result.success.nonzero()[: _SHOWN // 2, 0].tolist()]
    chosen += [*(~result.success).nonzero()[: _SHOWN - len(chosen), 0].tolist()]
    cells = []
    low, high = float(report.images.min()), float(report.images.max())
    for index in chosen:
        image, attacked = report.images[index], result.adversarial[index]
        shown = [
            (image - low) / (high - low),
            0.5 + 0.5 * (attacked - image) / result.epsilon,
            (attacked - low) / (high - low),
        ]
        pictures = "".join(f"<img src='{_png(picture)}' alt=''>" for picture in shown)
        wrong = 100 * float(result.success_rate[index])
        cells.append(f"<figure>{pictures}<figcaption>{int(report.labels[index])}: wrong in {wrong:.0f}% of the queries"
                     "</figcaption></figure>")  # fmt: skip
    return (
        "<h2>Images</h2><p>Original, perturbation (grey is none), attacked, for images that fell to the exact gradient "
        f"and images that held.</p><div class='digits'>{''.join(cells)}</div>"
    )


def _png(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1] as a data URL."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1]
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).contiguous().numpy()
    raw = b"".join(b"\0" + rows[line].tobytes() for line in range(height))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
