"""Everything that needs a GPU, in one command that takes less than ten minutes: ``make gpu-check``.

    python tools/gpu_check.py                all parts
    python tools/gpu_check.py tests          one or more of: build tests sanitizer benchmark defenses

It works offline, with nvcc and the Python that runs it, which needs torch, pytest, pybind11 and setuptools. Each part
has its own time limit; one that fails or takes too long is reported, and the others still run. Writes
benchmarks/results/gpu-<device>-<commit>.json and the same name with .md; exit status 1 where a part did not succeed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BENCH_FILE = ROOT / ".bench" / "gpu-bench.json"
DEFENSES_FILE = ROOT / ".bench" / "gpu-defenses.json"


@dataclass(frozen=True)
class Part:
    """One part: what it runs, and for how many seconds at most."""

    name: str
    command: tuple[str, ...]
    limit: float
    needs: str | None = None  # a program without which the part is skipped


def parts(python: str) -> list[Part]:
    """In the order in which they run; the limits add up to under ten minutes."""
    sanitizer = "compute-sanitizer"
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "tests/backends", "tests/executor"]
    return [
        Part("build", (python, "setup.py", "build_ext", "--inplace"), 180, "nvcc"),
        Part("tests", tuple(tests), 90),
        Part("sanitizer", (sanitizer, "--error-exitcode", "9", *tests, "-k", "sanitized"), 60, sanitizer),
        Part("benchmark", (python, "benchmarks/gpu_bench.py", str(BENCH_FILE), "--seconds", "170"), 200),
        Part("defenses", (python, "benchmarks/gpu_defenses.py", str(DEFENSES_FILE), "--seconds", "35"), 60),
    ]  # fmt: skip


@dataclass
class Outcome:
    """How a command ended; ``code`` None where its time ran out."""

    code: int | None
    output: str


def execute(command: Sequence[str], limit: float) -> Outcome:
    """Runs a command in the repository, and kills it with all its children at its limit."""
    # A build whose CUDA extension fails is a failed build here.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "FORCE_CUDA": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
        return Outcome(process.returncode, output)
    except subprocess.TimeoutExpired:
        # The whole process group: a compiler or a test that outlives its parent would take time from the next part.
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return Outcome(None, output)


def run_parts(
    wanted: Sequence[Part], run: Callable[[Sequence[str], float], Outcome] = execute,
    find: Callable[[str], str | None] = shutil.which, clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:  # fmt: skip
    """A record for every part: name, status (ok, failed, timeout or skipped), seconds, the end of its output."""
    records = []
    for part in wanted:
        record: dict[str, Any] = {"part": part.name, "limit": part.limit, "seconds": 0.0, "detail": ""}
        if part.needs is not None and find(part.needs) is None:
            record |= {"status": "skipped", "detail": f"{part.needs} is not on this machine"}
        else:
            say(f"{part.name}: up to {part.limit:.0f} s")
            start = clock()
            try:
                outcome = run(part.command, part.limit)
                status = "timeout" if outcome.code is None else "ok" if outcome.code == 0 else "failed"
                record |= {"status": status, "detail": outcome.output[-4000:]}
            except OSError as error:
                record |= {"status": "failed", "detail": f"could not be started: {error}"}
            record["seconds"] = clock() - start
        say(f"{part.name}: {record['status']} after {record['seconds']:.0f} s")
        records.append(record)
    return records


def file_stem(device: str, commit: str) -> str:
    """The name of the results' files without suffix, like gpu-nvidia-h200-1a2b3c4."""
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-') or 'none'}-{commit}"


def describe() -> dict[str, Any]:
    """Device, versions and commit; "none", "missing" or "unknown" where there is none."""
    facts: dict[str, Any] = {"python": sys.version.split()[0]}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    facts["commit"] = commit.stdout.strip() or "unknown"
    try:
        import torch
    except ImportError as error:
        return facts | {"device": "none", "torch": f"missing: {error}"}
    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
    else:
        facts["device"] = "none"
    return facts


def as_markdown(
    facts: dict[str, Any], records: list[dict[str, Any]], bench: dict[str, Any] | None, defenses: dict[str, Any] | None
) -> str:
    """The readable form of a result file."""
    import gpu_defenses
    from gpu_bench import as_table

    lines = [
        f"# {facts['device']}, commit {facts['commit']}",
        "",
        f"torch {facts.get('torch')}, CUDA {facts.get('cuda')}",
    ]
    lines += ["", "| part | status | seconds |", "|---|---|---|"]
    lines += [f"| {r['part']} | {r['status']} | {r['seconds']:.0f} |" for r in records]
    for record in records:
        if record["status"] not in {"ok", "skipped"}:
            lines += ["", f"## {record['part']}: {record['status']}", "", "```", record["detail"][-2000:], "```"]
    if bench is not None:
        lines += ["", "## Microseconds per call", "", as_table(bench["rows"]), "", "Ceilings:"]
        lines += [f"- {name}: {value:.4g}" for name, value in bench["ceilings"].items()]
    if defenses is not None:
        lines += ["", "## MALADE and its rivals, microseconds per image", "", gpu_defenses.as_table(defenses)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts that are named, or all."""
    known = parts(sys.executable)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(part.name for part in known))
    names = parser.parse_args(arguments).parts
    unknown = set(names) - {part.name for part in known}
    if unknown:
        parser.error(f"parts: expected some of {', '.join(p.name for p in known)}, got {', '.join(sorted(unknown))}")
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from fastmalade.files import replacing

    facts = describe()
    if facts["device"] == "none":
        print("gpu-check: expected a CUDA device that torch can use, got none; nothing was run", file=sys.stderr)
        return 1
    BENCH_FILE.parent.mkdir(exist_ok=True)
    for path in (BENCH_FILE, DEFENSES_FILE):
        path.unlink(missing_ok=True)
    records = run_parts([part for part in known if not names or part.name in names])
    bench, defenses = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None for path in (BENCH_FILE, DEFENSES_FILE)
    )
    target = RESULTS / file_stem(facts["device"], facts["commit"])
    text = as_markdown(facts, records, bench, defenses)
    record = {"facts": facts, "parts": records, "benchmark": bench, "defenses": defenses}
    for suffix, content in ((".json", json.dumps(record, indent=1) + "\n"), (".md", text)):
        with replacing(target.with_suffix(suffix)) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text)
    return 0 if all(record["status"] in {"ok", "skipped"} for record in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())
