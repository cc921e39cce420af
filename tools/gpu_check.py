"""Everything that needs a GPU, in one command that takes less than ten minutes: ``make gpu-check``.

    python tools/gpu_check.py                all parts
    python tools/gpu_check.py tests          one or more of: build tests benchmark defenses memcheck racecheck synccheck

It works offline, with nvcc and the Python that runs it, which needs torch, pytest, pybind11 and setuptools. Each part
has its own time limit; one that fails or takes too long is reported, and the others still run. Writes
benchmarks/results/gpu-<device>-<commit>.json and the same name with .md, after every part anew; exit status 1 where a
part did not succeed, was skipped, or skipped a test.
"""

from __future__ import annotations

import argparse
import importlib.util
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


# Files with tests that need a GPU: collecting all others would take a part of the time that there is.
GPU_TESTS = ("tests/backends/cuda/test_gpu.py", "tests/backends/triton/test_on_gpu.py", "tests/executor/test_on_gpu.py")

SANITIZED = ("tests/backends/cuda/test_gpu.py", "-k", "sanitized")


@dataclass(frozen=True)
class Part:
    """One part: what it runs, and for how many seconds at most."""

    name: str
    command: tuple[str, ...]
    limit: float
    needs: str | None = None  # a program without which the part is skipped


def parts(python: str) -> list[Part]:
    """In the order in which they run, what matters most first; the limits add up to under ten minutes."""
    sanitizer = "compute-sanitizer"
    tests = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
    # Most of their time goes into compiling Triton kernels, which processes do side by side.
    side_by_side = ("-n", "8") if importlib.util.find_spec("xdist") is not None else ()
    sanitized = [
        Part(tool, (sanitizer, "--tool", tool, "--error-exitcode", "9", *tests, *SANITIZED), 35, sanitizer)
        for tool in ("memcheck", "racecheck", "synccheck")
    ]
    return [
        Part("build", (python, "setup.py", "build_ext", "--inplace"), 150, "nvcc"),
        Part("tests", (*tests, *side_by_side, *GPU_TESTS), 200),
        Part("benchmark", (python, "benchmarks/gpu_bench.py", str(BENCH_FILE), "--seconds", "75"), 95),
        Part("defenses", (python, "benchmarks/gpu_defenses.py", str(DEFENSES_FILE), "--seconds", "25"), 45),
        *sanitized,
    ]  # fmt: skip


@dataclass
class Outcome:
    """How a command ended; ``code`` None where its time ran out."""

    code: int | None
    output: str


def execute(command: Sequence[str], limit: float) -> Outcome:
    """Runs a command in the repository, and kills it with all its children at its limit."""
    # A build whose CUDA extension fails is a failed build here, and a test that is skipped a failed test.
    before = os.environ.get("PYTHONPATH")
    path = str(ROOT) if not before else f"{ROOT}{os.pathsep}{before}"
    says = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "FORCE_CUDA": "1", "FASTMALADE_REQUIRE_CUDA": "1"}
    environment = {**os.environ, **says}
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


def find_program(name: str) -> str | None:
    """A program's path; nvcc where the build looks for it, which is not the search path alone."""
    if name != "nvcc":
        return shutil.which(name)
    import gpu_resources

    found: str | None = gpu_resources.load_setup().find_nvcc()
    return found


def run_parts(
    wanted: Sequence[Part], run: Callable[[Sequence[str], float], Outcome] = execute,
    find: Callable[[str], str | None] = find_program, clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], object] = print, keep: Callable[[list[dict[str, Any]]], object] = lambda records: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A record for every part: name, status (ok, failed, timeout or skipped), seconds, the end of its output.

    ``keep`` is called with the records so far after each part.
    """
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
        keep(records)
    return records


def file_stem(device: str, commit: str) -> str:
    """The name of the results' files without suffix, like gpu-nvidia-h200-1a2b3c4."""
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-') or 'none'}-{commit}"


def describe() -> dict[str, Any]:
    """Device, versions and commit; "none", "missing" or "unknown" where there is none."""
    facts: dict[str, Any] = {"python": sys.version.split()[0]}
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    facts["commit"] = commit or "unknown"
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
        if record["status"] != "ok":
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
    facts = describe()
    if facts["device"] == "none":
        print("gpu-check: expected a CUDA device that torch can use, got none; nothing was run", file=sys.stderr)
        return 1
    BENCH_FILE.parent.mkdir(exist_ok=True)
    for path in (BENCH_FILE, DEFENSES_FILE):
        path.unlink(missing_ok=True)
    records = run_parts(
        [part for part in known if not names or part.name in names], keep=lambda so_far: write_results(facts, so_far)
    )
    print(write_results(facts, records))
    return 0 if records and all(record["status"] == "ok" for record in records) else 1


def write_results(facts: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """Write what there is so far to both result files; the readable one is returned."""
    from fastmalade.files import write_bytes

    bench, defenses = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None for path in (BENCH_FILE, DEFENSES_FILE)
    )
    target = RESULTS / file_stem(facts["device"], facts["commit"])
    text = as_markdown(facts, records, bench, defenses)
    record = {"facts": facts, "parts": records, "benchmark": bench, "defenses": defenses}
    write_bytes(target.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    write_bytes(target.with_suffix(".md"), text.encode())
    return text


if __name__ == "__main__":
    raise SystemExit(main())
