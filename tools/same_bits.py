"""Hashes what the package computes on a CPU, to show that a change of its code changes no bit of any result.

    old/.venv/bin/python tools/same_bits.py record old.json       the checkout that this interpreter imports
    new/.venv/bin/python tools/same_bits.py record new.json       (PYTHONPATH may name another one)
    python tools/same_bits.py compare old.json new.json           exit status 1 if anything differs or is missing

The same files serve both checkouts: the cases, in same_bits_chains.py and same_bits_models.py, use public names, and
``defined`` in same_bits_cases.py finds the few others wherever they lie. A case that raises is kept as its error and
counts as missing. Both records have to come from one machine with the same versions of torch and numpy.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHAINS, MODELS = "same_bits_chains", "same_bits_models"
# Group: the environment that makes it what it is, file and functions of its cases. Each runs in a process of its own
# because an instruction set, Triton's interpreter and caches of the package belong to a process.
GROUPS: dict[str, tuple[dict[str, str], str, tuple[str, ...]]] = {
    "torch": ({}, CHAINS, ("plain_torch",)),
    "cpu-baseline": ({"FASTMALADE_CPU_ISA": "baseline"}, CHAINS, ("native",)),
    "cpu-avx2": ({"FASTMALADE_CPU_ISA": "avx2"}, CHAINS, ("native",)),
    "cpu-avx512": ({"FASTMALADE_CPU_ISA": "avx512"}, CHAINS, ("native",)),
    "attacks": ({}, MODELS, ("classifiers", "all_attacks", "libraries")),
    "trainings": ({}, MODELS, ("trainings", "compiled")),
    "defenses": ({}, MODELS, ("kinds_of_images", "all_defenses", "files")),
    "triton": ({"TRITON_INTERPRET": "1"}, CHAINS, ("interpreted_triton",)),
}


def run_group(name: str, out: Path) -> None:
    """Computes one group in this process and writes its hashes."""
    import numpy
    import torch
    from same_bits_cases import Cases

    import fastmalade

    _, file, functions = GROUPS[name]
    found: dict[str, Any] = {"package": fastmalade.__file__, "left_out": "", "cases": {}}
    found["setting"] = {"torch": torch.__version__, "numpy": numpy.__version__, "machine": platform.machine()}
    for function in functions:
        cases = Cases()
        getattr(importlib.import_module(file), function)(cases)
        found["cases"] |= {f"{name}/{function}: {case}": entry for case, entry in cases.found.items()}
        found["left_out"] += cases.left_out
    out.write_text(json.dumps(found), encoding="utf-8")


def record(out: Path, groups: list[str], jobs: int) -> int:
    """Computes groups, ``jobs`` at a time, and writes all hashes; 1 if a case or a group failed."""
    started = time.perf_counter()
    record: dict[str, Any] = {"package": "", "setting": {}, "cases": {}}
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        runs = {name: pool.submit(_group, name, Path(folder) / f"{name}.json") for name in groups}
        for number, (name, run) in enumerate(runs.items(), 1):
            found, message = run.result()
            cases = found.get("cases", {f"{name}/": {"error": message}})
            errors = {case: entry["error"] for case, entry in cases.items() if "error" in entry}
            record |= {key: found[key] for key in ("package", "setting") if key in found}
            record["cases"] |= cases
            failed += len(errors)
            note = f"left out: {found['left_out']}" if found.get("left_out") else f"{len(cases)} results"
            seconds = time.perf_counter() - started
            print(f"[{number}/{len(runs)}] {seconds:5.1f} s  {name}: {note}", file=sys.stderr, flush=True)
            for case, error in errors.items():
                print(f"    {case}: {error}", file=sys.stderr)
    out.write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")
    print(f"{len(record['cases'])} results of {record['package']}, {failed} failed: {out}", file=sys.stderr)
    return 1 if failed else 0


def _group(name: str, out: Path) -> tuple[dict[str, Any], str]:
    """What ``run_group`` found in a process of its own, or an empty dict and the end of what that process said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FASTMALADE_", "TRITON_"))}
    # Threads that spin while they wait would take the time of the group beside this one.
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0", **GROUPS[name][0]}
    command = [sys.executable, __file__, "group", name, str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not out.is_file():
        return {}, f"status {result.returncode}: {result.stderr[-2000:]}"
    return json.loads(out.read_text(encoding="utf-8")), ""


def compare(first: Path, second: Path) -> int:
    """Prints what differs between two records; 1 if anything does."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (first, second))
    if old["setting"] != new["setting"]:
        print(f"recorded under different settings: {old['setting']} and {new['setting']}")
    verdicts: dict[str, list[str]] = {"equal": [], "different": [], "missing": []}
    whole = [{name.split("/")[0] for name in record["cases"]} for record in (old, new)]
    for group in sorted(whole[0] ^ whole[1]):
        print(f"missing: all of {group} in {second if group in whole[0] else first}")
    for name in dict.fromkeys([*old["cases"], *new["cases"]]):
        entries = [record["cases"].get(name, {"error": "not there"}) for record in (old, new)]
        errors = [entry.get("error") for entry in entries]
        verdict = "missing" if any(errors) else "equal" if entries[0] == entries[1] else "different"
        verdicts[verdict].append(name)
        if verdict != "equal" and name.split("/")[0] in whole[0] & whole[1]:
            print(f"{verdict}: {name}")
            for path, error in zip((first, second), errors, strict=True):
                if error:
                    print(f"    {path}: {error}")
    groups = collections.Counter(name.split("/")[0] for name in verdicts["equal"])
    print("equal by group: " + ", ".join(f"{name} {count}" for name, count in groups.items()))
    print(", ".join(f"{len(names)} {verdict}" for verdict, names in verdicts.items()))
    return 0 if len(verdicts["equal"]) == sum(map(len, verdicts.values())) > 0 else 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="compute everything and write the hashes")
    recording.add_argument("out", type=Path)
    recording.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP",
                           help=f"any of {', '.join(GROUPS)}")  # fmt: skip
    recording.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="groups computed at once")
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    one = commands.add_parser("group")  # what record calls for each group
    one.add_argument("name", choices=GROUPS)
    one.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        return record(arguments.out, arguments.groups, arguments.jobs)
    if arguments.command == "compare":
        return compare(arguments.first, arguments.second)
    run_group(arguments.name, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
