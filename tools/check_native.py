"""Builds the CPU kernels outside the package and runs them under the compiler's sanitizers.

    python tools/check_native.py                       address+undefined, then thread, on the widest set of this machine
    python tools/check_native.py address --isa baseline
    python tools/check_native.py wide                  16 lanes on a processor with AVX2: the same bits as 8 lanes
    python tools/check_native.py symbols               no object of wide instructions offers the linker a function

Exit status 0 if every check passes, 1 on a finding, 2 if a check cannot run on this machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT / "tools" / "native_driver.cpp"
# Optimising kernels instrumented for addresses and undefined behaviour takes minutes; the thread sanitizer makes them
# so slow that optimising pays.
SANITIZERS = {
    "address": ("-O0", ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
    "thread": ("-O1", ["-fsanitize=thread"]),
}


def load_setup() -> ModuleType:
    """setup.py as a module: it alone knows the flags of every instruction set."""
    spec = importlib.util.spec_from_file_location("fastmalade_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_compiler() -> str:
    """g++ or clang++; exits with status 2 if there is neither."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        print("no C++ compiler on this machine")
        raise SystemExit(2)
    return compiler


def compile_kernel(folder: Path, isa: str, extra: list[str], optimisation: str) -> Path:
    """One object of the kernels, with setup.py's flags except for the optimisation level."""
    setup = load_setup()
    target = folder / f"kernels_{isa}.o"
    flags = setup.kernel_flags("avx2" if isa == "wide" else isa)
    flags = [flag for flag in flags if not flag.startswith(("-O", "-g"))] + [optimisation, "-Wall", "-Wextra"]
    lanes = ["-DFASTMALADE_LANES=16"] if isa == "wide" else []
    command = [find_compiler(), *flags, *lanes, *extra, f"-DFASTMALADE_ISA={isa}",
               f"-I{ROOT / 'kernels'}", "-c", str(ROOT / setup.KERNEL_SOURCE), "-o", str(target)]  # fmt: skip
    subprocess.run(command, check=True)
    return target


def build_driver(folder: Path, isa: str, extra: list[str], optimisation: str) -> Path:
    """The test driver linked with the kernels of one instruction set."""
    kernel = compile_kernel(folder, isa, extra, optimisation)
    program = folder / f"driver_{isa}"
    sources = [DRIVER, *(ROOT / source for source in load_setup().ENGINE_SOURCES)]
    command = [find_compiler(), "-std=c++17", "-O1", "-g", "-pthread", "-Wall", "-Wextra", *extra,
               f"-DFASTMALADE_ISA={isa}", f"-I{ROOT / 'kernels'}", *map(str, sources), str(kernel),
               "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)
    return program


def run_driver(program: Path, *arguments: str) -> str:
    """Output of the driver; raises if a comparison or a sanitizer found something."""
    result = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{program.name} ended with status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def check_sanitizer(folder: Path, kind: str, isa: str) -> None:
    """Runs the driver under one sanitizer."""
    optimisation, flags = SANITIZERS[kind]
    print(run_driver(build_driver(folder, isa, flags, optimisation)), end="")


def check_wide(folder: Path) -> None:
    """The 16-lane code on two 8-lane halves gives the bits of the 8-lane code."""
    if load_setup().widest_isa() in {None, "baseline"}:
        print("the 16-lane check needs AVX2 and FMA, which this processor lacks")
        raise SystemExit(2)
    outputs = [run_driver(build_driver(folder, isa, [], "-O1"), "dump").splitlines()[:-1] for isa in ("avx2", "wide")]
    if outputs[0] != outputs[1] or not outputs[0]:
        raise RuntimeError("16 lanes and 8 lanes give different bits")
    print(f"{len(outputs[0])} results equal to the bit with 8 and with 16 lanes")


def check_symbols(folder: Path) -> None:
    """Every object defines one strong symbol in its own namespace, and none that the linker might merge."""
    for isa in load_setup().isa_flags():
        kernel = compile_kernel(folder, isa, [], "-O0")  # the less is inlined, the more would show
        listing = subprocess.run(["nm", "-C", str(kernel)], capture_output=True, text=True, check=True).stdout
        rows = [line for line in listing.splitlines() if not line.lstrip().startswith("U ")]
        defined = [row.split(maxsplit=2)[1:] for row in rows]
        visible = [(kind, name) for kind, name in defined if kind not in "tdrbn"]
        table = f"fastmalade::cpu::{isa}::kernels"
        if visible not in ([("D", table)], [("R", table)]):
            raise RuntimeError(f"{isa}: expected the kernel table alone to be visible, got {visible}")
        print(f"{isa}: {visible[0][1]} alone is visible")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", default=["address", "thread"], help="address, thread, wide, symbols")
    parser.add_argument(
        "--isa", default=load_setup().widest_isa() or "baseline", help="instruction set for the sanitizers"
    )
    arguments = parser.parse_args()
    for check in arguments.checks:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                if check in SANITIZERS:
                    check_sanitizer(folder, check, arguments.isa)
                elif check == "wide":
                    check_wide(folder)
                elif check == "symbols":
                    check_symbols(folder)
                else:
                    parser.error(f"check: expected address, thread, wide or symbols, got {check}")
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{check}: {error}", file=sys.stderr)
                return 1
            print(f"{check}: passed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
