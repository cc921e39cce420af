"""Registers, spills and instructions of every CUDA kernel for every GPU generation, without a GPU.

    python tools/gpu_resources.py            writes benchmarks/results/gpu-resources.json and docs/gpu-resources.md

Compiles kernels/cuda with nvcc and reads what ptxas reports. Where cuobjdump is found (beside nvcc, on the path, or in
an installed triton) it counts instructions in the machine code too: fused multiply-adds, loads, tensor cores. The file
has a hash of the sources, so that a test can tell whether it is up to date.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "kernels" / "cuda" / "engine.cu"
RESULTS = ROOT / "benchmarks" / "results" / "gpu-resources.json"
TABLE = ROOT / "docs" / "gpu-resources.md"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
HOT = ("chain", "gradient")
PRECISIONS = ("fp32", "tf32x3", "tf32")  # as kernels/cuda/engine.h numbers them
# Classes of instructions by their first letters, in the machine code of any generation.
INSTRUCTIONS = {"ffma": ("FFMA",), "lds": ("LDS",), "ldg": ("LDG", "LD."), "local": ("LDL", "STL"),
                "tensor": ("HMMA", "HGMMA", "QGMMA", "IMMA", "DMMA", "UTCHMMA", "UTCQMMA")}  # fmt: skip


def source_hash() -> str:
    """Of everything that the machine code is made from; comments and layout do not count."""
    folders = (ROOT / "kernels" / folder for folder in ("cuda", "common"))
    files = sorted(path for folder in folders for path in folder.glob("*.*") if path.suffix != ".md")
    digest = hashlib.sha256()
    for path in [*files, ROOT / "setup.py"]:
        text = path.read_text(encoding="utf-8") if path.name != "setup.py" else repr(nvcc_flags())
        code = re.sub(r"\s", "", re.sub(r"//.*", "", text))
        digest.update(f"{path.name} {code}\n".encode())
    return digest.hexdigest()


def load_setup() -> Any:
    """setup.py as a module: nvcc and its flags are found there alone."""
    spec = importlib.util.spec_from_file_location("fastmalade_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nvcc_flags() -> list[str]:
    """The flags of the build."""
    return list(load_setup().NVCC_FLAGS)


def find_cuobjdump(nvcc: str) -> str | None:
    """CUDA's disassembler, or None."""
    beside = Path(nvcc).resolve().parent / "cuobjdump"
    if beside.is_file():
        return str(beside)
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(inside) if inside.is_file() else None
    return found


def short_name(demangled: str) -> str:
    """As "chain digits x8": what a form of a kernel is called in tables."""
    kind = re.sub(r"_kernel$", "", re.split(r"[<(]", demangled.replace("void ", "", 1))[0].split("::")[-1])
    # Template arguments are written (int)8, (bool)1 and (Precision)2 for some architectures, plainly for others.
    plain = re.sub(r"\((?:int|bool|[\w:]*Precision)\)", "", demangled)
    tiles = re.search(r"\w+Tiles", plain)
    form = re.search(r"(Digits|General|Cluster|TensorForm)<(\w+)(?:, (\w+))?>", plain)
    if kind == "pack" and tiles is not None:
        return f"pack {tiles.group()}"
    if kind == "pack_tensor":
        precision = re.search(r"<(\d)>", plain)
        assert precision is not None
        return f"pack tensor {PRECISIONS[int(precision.group(1))]}"
    if form is None:
        return kind
    name, first, second = form.groups()
    if name == "TensorForm":
        return f"chain tensor {PRECISIONS[int(first)]}, weights {residence(second)}"
    if name == "Digits":
        return f"{kind} digits x{first}, weights {'streamed' if kind == 'gradient' else 'resident'}"
    return f"{kind} {name.lower()}, weights {residence(first)}"


def residence(resident: str) -> str:
    """Of a form's weights: in shared memory, or read through the caches."""
    return "resident" if resident in {"1", "true"} else "streamed"


def parse_report(text: str, architecture: str) -> list[dict[str, Any]]:
    """Rows of what ``ptxas -v`` printed, names already demangled."""
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        entry = re.search(r"Compiling entry function '(.*)' for '", line)
        if entry:
            rows.append({"kernel": short_name(entry.group(1)), "arch": architecture})
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if frame and rows and "stack_bytes" not in rows[-1]:
            rows[-1] |= dict(zip(("stack_bytes", "spill_stores", "spill_loads"), map(int, frame.groups()), strict=True))
        used = re.search(r"Used (\d+) registers", line)
        if used and rows:
            rows[-1]["registers"] = int(used.group(1))
    for row in rows:
        missing = {"stack_bytes", "spill_stores", "spill_loads", "registers"} - set(row)
        if missing:
            raise ValueError(f"ptxas report: expected {sorted(missing)} for {row['kernel']}, got none")
    return rows


def count_instructions(sass: str) -> dict[str, dict[str, int]]:
    """Instructions by kernel of what ``cuobjdump -sass`` printed, names already demangled."""
    counts: dict[str, dict[str, int]] = {}
    for part in re.split(r"Function : ", sass)[1:]:
        opcodes = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", part))
        counts[short_name(part.splitlines()[0])] = {
            name: sum(n for opcode, n in opcodes.items() if opcode.startswith(prefixes))
            for name, prefixes in INSTRUCTIONS.items()
        } | {"instructions": sum(opcodes.values())}
    return counts


def inner_loops(sass: str, kernel: str) -> list[dict[str, int]]:
    """The innermost loops of a kernel with 20 multiply-adds or a tensor core's product, which take most of its time."""
    part = next(p for p in re.split(r"Function : ", sass)[1:] if short_name(p.splitlines()[0]) == kernel)
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", part)
    place = {int(address, 16): n for n, (address, _) in enumerate(code)}
    bounds = []
    for n, (_, text) in enumerate(code):
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and place.get(int(jump.group(1), 16), n) < n:
            bounds.append((place[int(jump.group(1), 16)], n))
    loops = []
    for first, last in bounds:
        # A loop that contains another is not innermost; of two with the same start the shorter is the other's body.
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in bounds):
            continue
        body = [text for _, text in code[first : last + 1]]
        count = {name: sum(text.split()[0 if text[0] != "@" else 1].startswith(INSTRUCTIONS[name]) for text in body)
                 for name in ("ffma", "lds", "tensor")}  # fmt: skip
        if count["ffma"] >= 20 or count["tensor"]:
            loops.append({"instructions": len(body), **count})
    return loops


def demangle(text: str) -> str:
    """``text`` with C++ names in their readable form."""
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def compile_rows(architecture: str, folder: Path) -> list[dict[str, Any]]:
    """Compiles for one architecture; one row for each kernel, with its inner loops where machine code can be read."""
    setup = load_setup()
    nvcc = setup.find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc: expected it in CUDACXX, CUDA_HOME or on the path, found none")
    number, target = architecture.removeprefix("sm_"), folder / f"{architecture}.cubin"
    command = [nvcc, *setup.NVCC_FLAGS, "-gencode", f"arch=compute_{number},code={architecture}", "-Xptxas", "-v",
               f"-I{ROOT / 'kernels'}", "-cubin", "-o", str(target), str(SOURCE)]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise RuntimeError(f"nvcc failed for {architecture}:\n{built.stderr[-2000:]}")
    rows = parse_report(demangle(built.stderr), architecture)
    cuobjdump = find_cuobjdump(nvcc)
    if cuobjdump is not None:
        sass = subprocess.run([cuobjdump, "-sass", str(target)], capture_output=True, text=True, check=True).stdout
        sass = demangle(sass)
        counts = count_instructions(sass)
        for row in rows:
            row |= counts[row["kernel"]] | {"loops": inner_loops(sass, row["kernel"])}
    return rows


def spills(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each hot kernel that spills."""
    return [
        f"{row['kernel']} on {row['arch']}: {row['spill_stores']} bytes stored, {row['spill_loads']} loaded"
        for row in rows
        if row["kernel"].startswith(HOT) and (row["spill_stores"] or row["spill_loads"] or row.get("local"))
    ]


def merged(values: list[Any]) -> str:
    """One value for each generation of GPUs: "197 / 220 / 255", or a single one where all are equal."""
    words = list(map(str, values))
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A table for people: a row for each kernel, with a value for each generation of GPUs."""
    columns = {"registers": "registers", "stack_bytes": "stack bytes", "spill_stores": "spill stores",
               "spill_loads": "spill loads", "ffma": "FFMA", "lds": "LDS", "ldg": "LDG", "local": "local",
               "tensor": "tensor core", "instructions": "instructions"}  # fmt: skip
    lines = [f"| kernel | {' | '.join(columns.values())} |", "|" + "---|" * (len(columns) + 1)]
    by_kernel: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["kernel"], ARCHITECTURES.index(r["arch"]))):
        by_kernel.setdefault(row["kernel"], []).append(row)
    for kernel, found in by_kernel.items():
        cells = [merged([row.get(name, "not read") for row in found]) for name in columns]
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    lines += [
        "",
        "Innermost loops on sm_90: of the chain for digits one input channel and one row of taps of a tile; of the "
        "chains on tensor cores a row of taps of eight channels, or of the channels left over, of a row of positions:",
        "",
    ]
    lines += ["| kernel | instructions | FFMA | LDS | tensor core |", "|---|---|---|---|---|"]
    for row in rows:
        if row["arch"] == "sm_90" and re.match("chain (digits x8|tensor .*resident)", row["kernel"]):
            lines += [f"| {row['kernel'].split(',')[0]} | {' | '.join(str(n) for n in loop.values())} |"
                      for loop in row.get("loops", [])]  # fmt: skip
    return "\n".join(lines)


def in_words(rows: list[dict[str, Any]]) -> str:
    """The page docs/gpu-resources.md."""
    return (
        "# Resources of the CUDA kernels\n\n"
        "Written by `python tools/gpu_resources.py`. Compiled, not run: nothing here is a speed. Counts are of "
        "instructions in the machine code, each once however often it runs; shared memory is chosen at launch "
        f"(`kernels/cuda/README.md`). Three values are those of {', '.join(ARCHITECTURES)}.\n\n{as_markdown(rows)}\n"
    )


def main() -> int:
    """Writes both files; 1 where a hot kernel spills."""
    sys.path.insert(0, str(ROOT))
    from fastmalade.files import replacing

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            print(f"compiling for {architecture}", flush=True)
            rows += compile_rows(architecture, Path(folder))
    for path, content in (
        (RESULTS, json.dumps({"source_hash": source_hash(), "rows": rows}, indent=1) + "\n"),
        (TABLE, in_words(rows)),
    ):
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(as_markdown(rows))
    found = spills(rows)
    print("\n".join(f"spills: {line}" for line in found) or "no spills in the chain and gradient kernels")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
