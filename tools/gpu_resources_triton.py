"""Compiles every Triton kernel for several GPUs, on any machine, and reports registers, shared memory and spills.

    python tools/gpu_resources_triton.py [--write]

Which kernels there are, with which constants and types, is found by running the backend with a recorder in place of the
launches, so the list cannot fall behind the backend. Nothing here needs a GPU, and nothing here is a speed.
``--write`` writes benchmarks/results/gpu-resources-triton.json and docs/gpu-resources-triton.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gpu_resources import merged

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (80, 90, 100)
WARP_SIZE = 32
COLD = ("pack_kernel", "start_kernel", "philox_words_kernel")
"""Kernels that run once per call or only in tests, where a spill costs next to nothing."""
_TENSOR_CORE = r"\b(HMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA|UTCMMA)\S*"
_MODELS = ((1, 28, 28, 10, 25), (3, 32, 32, 10, 25))


@dataclasses.dataclass(frozen=True)
class Launch:
    """What Triton compiles for one launch: types and constants of the arguments, warps and load stages."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int

    @property
    def label(self) -> str:
        """The kernel's name, and the constants in which its variants differ."""
        constants = dict(self.constants)
        told = ("C_IN", "C_OUT", "TAPS", "EPILOGUE", "CHANNELS", "NOISE", "CLAMPED", "BLOCK_M", "PRECISION")
        parts = [f"{name}={constants[name]}" for name in told if name in constants]
        return " ".join([self.kernel.__name__, *parts])


@dataclasses.dataclass(frozen=True)
class Row:
    """Resources of one compiled kernel: per thread (registers, stack and spill bytes) and per block (shared bytes)."""

    kernel: str
    architecture: str
    warps: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    multiply_adds: int
    tensor_core_instructions: int
    hot: bool


def recorded_launches(precisions: tuple[str, ...] = ("fp32", "tf32")) -> list[Launch]:
    """Every distinct launch of the backend's functions for images of one and of three channels."""
    from fastmalade.backends import arguments
    from fastmalade.backends.triton import calls as backend
    from fastmalade.backends.values import NoiseSource, Step, Steps

    found: dict[Launch, None] = {}
    with _recorder(lambda launch: found.setdefault(launch)):
        for channels, height, width, *hidden in _MODELS:
            x = torch.zeros(2, channels, height, width)
            weights = [torch.zeros(shape) for shape in arguments.weight_shapes(channels, *hidden)]
            for precision in precisions if channels == 1 else precisions[:1]:
                # A step with noise and clamp, one without both.
                steps = Steps((0.1, 0.1), (0.1, 0.0), (0.0, -float("inf")), (1.0, float("inf")))
                backend.langevin_chain(x, weights, steps, NoiseSource(1), precision=precision)
                backend.chain_gradient(x, x, weights, steps, NoiseSource(1), precision=precision)
            given = NoiseSource(1, given=torch.zeros(1, *x.shape))
            backend.chain_gradient(x, x, weights, Steps((0.1,), (0.1,), (0.0,), (1.0,)), given)
            for z, d in ((None, 0.1), (None, 0.0), (x, 0.1)):
                step, source = Step(0, 0.1, d, 0.0, 1.0), NoiseSource(1, given=z)
                backend.langevin_update(x, x, step, source)
                backend.langevin_update_vjp(x, x, x, step, source)
            backend.standard_normal(1, torch.arange(2), 0, 784)
            backend.philox_words(1, torch.arange(2), 0, 784)
    return list(found)


def one_of_each(launches: list[Launch]) -> list[Launch]:
    """One variant of every kernel: with drawn noise where there is a choice; of products, the one with wide tiles."""
    chosen: dict[tuple[Any, ...], Launch] = {}
    for launch in launches:
        constants = dict(launch.constants)
        if constants.get("NOISE", 1) == 1 and constants.get("BLOCK_N", 32) == 32:
            chosen.setdefault((launch.kernel.__name__, constants.get("EPILOGUE")), launch)
    return list(chosen.values())


@contextmanager
def _recorder(note: Callable[[Launch], Any]) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    from fastmalade.backends.triton import calls as backend

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        note(_launch(kernel, args, options))

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(backend, "_require", return_value=None):
        yield


def _launch(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """Types as Triton's own dispatch gives them: a 1 is a constant, multiples of 16 are known to be ones."""
    types, constants, aligned = [], [], []
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        value = args[index] if index < len(args) else options[name]
        if isinstance(value, torch.Tensor):
            types.append((name, {torch.float32: "*fp32", torch.int64: "*i64"}[value.dtype]))
            aligned += [index] if value.data_ptr() % 16 == 0 else []
        elif parameter.is_constexpr or (value == 1 and isinstance(value, int) and not parameter.do_not_specialize):
            types.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, float):
            types.append((name, "fp32"))
        else:
            types.append((name, "i32"))
            aligned += [index] if value % 16 == 0 and not parameter.do_not_specialize else []
    return Launch(
        kernel,
        tuple(types),
        tuple(constants),
        tuple(aligned),
        options.get("num_warps", 4),
        options.get("num_stages", 3),
    )


def compile_launch(launch: Launch, architecture: int) -> Row:
    """Compiles for compute capability ``architecture`` / 10 and reads the resources off ptxas and the disassembly."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in launch.aligned},
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    with _assembler_log() as log:
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, WARP_SIZE), options=options)
    report, code = log.getvalue(), _disassembly(compiled.asm["cubin"])
    return Row(
        kernel=launch.label,
        architecture=f"sm_{architecture}",
        warps=launch.num_warps,
        registers=_number(r"Used (\d+) registers", report),
        shared_bytes=int(compiled.metadata.shared),
        stack_bytes=_number(r"(\d+) bytes stack frame", report),
        spill_store_bytes=_number(r"(\d+) bytes spill stores", report),
        spill_load_bytes=_number(r"(\d+) bytes spill loads", report),
        multiply_adds=len(re.findall(r"\bFFMA2?\b", code)),
        tensor_core_instructions=len(re.findall(_TENSOR_CORE, code)),
        hot=launch.kernel.__name__ not in COLD,
    )


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


@contextmanager
def _assembler_log() -> Iterator[io.StringIO]:
    """A context in which compilation skips Triton's cache, and what ptxas prints goes into the text."""
    from triton import knobs

    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        yield log


def _disassembly(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([_tool("cuobjdump"), "-sass", str(path)], capture_output=True, text=True, check=True)
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the assembler's report: expected a line with {pattern!r}, got {text!r}")
    return int(found[1])


def triton_rows(architectures: tuple[int, ...] = ARCHITECTURES) -> list[Row]:
    """The resources of every kernel on every architecture."""
    from fastmalade.progress import progress_bar

    launches = recorded_launches()
    rows = []
    with progress_bar() as bar:
        task = bar.add_task("compiling Triton kernels", total=len(launches) * len(architectures))
        for launch in launches:
            for architecture in architectures:
                rows.append(compile_launch(launch, architecture))
                bar.advance(task)
    return rows


def as_markdown(rows: list[Row]) -> str:
    """A table for people: a row for each variant of a kernel, with a value for each generation of GPUs."""
    names = [field.name for field in dataclasses.fields(Row) if field.name not in ("kernel", "architecture", "hot")]
    lines = [
        "| kernel | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    variants: dict[tuple[str, int], list[Row]] = {}
    seen: Counter[tuple[str, str]] = Counter()  # variants that differ in the alignment of their arguments share a label
    for row in rows:
        seen[row.kernel, row.architecture] += 1
        variants.setdefault((row.kernel, seen[row.kernel, row.architecture]), []).append(row)
    for (kernel, _), found in variants.items():
        cells = [merged([getattr(row, name) for row in found]) for name in names]
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    return "\n".join(dict.fromkeys(lines))


def main() -> int:
    """Prints the table; 1 where a hot kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the committed table")
    arguments = parser.parse_args()
    import triton

    from fastmalade.files import replacing

    rows = triton_rows()
    print(as_markdown(rows))
    if arguments.write:
        record = {"triton": triton.__version__, "rows": [dataclasses.asdict(row) for row in rows]}
        with replacing(ROOT / "benchmarks" / "results" / "gpu-resources-triton.json") as path:
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        text = (
            f"# Resources of the Triton kernels\n\nWritten by `python tools/gpu_resources_triton.py --write`, Triton "
            f"{triton.__version__}. Compiled, not run: nothing here is a speed. Three values are those of sm_80, sm_90 "
            "and sm_100.\n\n"
        )
        with replacing(ROOT / "docs" / "gpu-resources-triton.md") as path:
            path.write_text(f"{text}{as_markdown(rows)}\n", encoding="utf-8")
    spilling = [row for row in rows if row.hot and row.spill_store_bytes + row.spill_load_bytes > 0]
    for row in spilling:
        print(f"spills: {row.kernel} on {row.architecture}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
