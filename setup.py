"""Native part of the build: the CPU kernels once per instruction set, and the extension modules made of them.

The rest of the configuration is in pyproject.toml. Without a working compiler the package is built without its
extension and computes in torch; fastmalade/_build_info.json records what was built, with which flags, or why not.
Environment variables:

    FASTMALADE_NO_EXTENSION=1       compile nothing
    FASTMALADE_REQUIRE_NATIVE=1     fail where the CPU extension or one of its instruction sets does not compile
    FASTMALADE_CPU_ISAS=avx2        only these instruction sets beside the portable one, separated by commas;
                                    "native" stands for the widest of this machine
    FORCE_CUDA=1                    compile the CUDA kernels even where no GPU is visible, and fail if that fails
    FASTMALADE_NO_CUDA=1            never compile them
    FASTMALADE_CUDA_ARCHS=90        for these compute capabilities, without the dot and separated by commas; "+PTX"
                                    after those that newer GPUs compile for themselves; "80,90+PTX" if unset
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
OBJECTS = Path("build") / "objects"
INFO_FILE = "_build_info.json"
IS_X86 = platform.machine().lower() in {"x86_64", "amd64"}

# Contraction is off so that a multiply and an add are fused exactly where the source says fma. Never
# -march=native or a global -mavx*: a wheel must run on any processor of its platform. -g0 undoes the
# interpreter's own -g, which would make the module ten times as large.
COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC"]
# No exceptions and no type information: both would put weak symbols into objects full of wide instructions.
KERNEL_FLAGS = [*COMMON_FLAGS, "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-Wno-psabi"]
X86_ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
}
KERNEL_SOURCE = "kernels/cpu/isa/kernels.cpp"
ENGINE_SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("kernels/cpu/host/*.cpp"))

CUDA_SOURCES = ["kernels/cuda/engine.cu", "kernels/cuda/device.cu"]
CUDA_HOST_SOURCES = ["csrc/cuda_module.cpp", "kernels/cuda/choice.cpp"]
# -fmad=false as -ffp-contract=off above: every form of a kernel then rounds alike.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
DEFAULT_CUDA_ARCHITECTURES = "80,90+PTX"


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "0") not in {"", "0"}


def say(message: str) -> None:
    """Prints one line of progress, at once: pip and make read it through a pipe."""
    print(f"fastmalade: {message}", flush=True)


def warn_loudly(message: str) -> None:
    """Says something a user should not miss in a build's output."""
    rule = "*" * 100
    print(f"{rule}\nfastmalade: {message}\n{rule}", file=sys.stderr, flush=True)


def widest_isa() -> str | None:
    """The widest instruction set that /proc/cpuinfo lists, None where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return None
    features = set(cpuinfo.read_text(encoding="utf-8").split())
    fitting = (isa for isa, flags in X86_ISA_FLAGS.items() if {flag.removeprefix("-m") for flag in flags} <= features)
    return ["baseline", *fitting][-1]


def isa_flags() -> dict[str, list[str]]:
    """Instruction sets this platform can be built for, with the flags each adds; baseline is always first."""
    wide = X86_ISA_FLAGS if IS_X86 else {}
    chosen = os.environ.get("FASTMALADE_CPU_ISAS")
    if chosen == "native":
        chosen = widest_isa()
    if chosen is None:
        return {"baseline": [], **wide}
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    unknown = sorted(set(names) - {"baseline", *wide})
    if unknown:
        expected = ", ".join(["baseline", *wide, "native"])
        raise ValueError(f"FASTMALADE_CPU_ISAS: expected any of {expected}, got {unknown[0]!r}")
    return {"baseline": [], **{name: flags for name, flags in wide.items() if name in names}}


def kernel_flags(isa: str) -> list[str]:
    """All flags of one instruction set. On x86 few processors run baseline: -O1 compiles it in half the time."""
    return [*KERNEL_FLAGS, *(["-O1"] if isa == "baseline" and IS_X86 else []), *isa_flags()[isa]]


def no_extension_reason() -> str | None:
    """Why no extension is even tried, or None."""
    if is_set("FASTMALADE_NO_EXTENSION"):
        return "built with FASTMALADE_NO_EXTENSION=1"
    try:
        import pybind11  # noqa: F401
    except ImportError as error:
        return f"pybind11 was not there at build time ({error})"
    return None


def find_nvcc() -> str | None:
    """CUDA's compiler: from CUDACXX, from CUDA_HOME, on the path, or where it is usually installed."""
    home = os.environ.get("CUDA_HOME")
    for candidate in (os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    return None


def gpu_is_visible() -> bool:
    """Whether this machine has an NVIDIA GPU: a device file, or one that nvidia-smi lists."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    tool = shutil.which("nvidia-smi")
    return (
        tool is not None and "GPU " in subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout
    )


def cuda_architectures() -> list[tuple[str, list[str]]]:
    """Names of FASTMALADE_CUDA_ARCHS, as sm_90 and compute_90, with nvcc's options for each."""
    found: list[tuple[str, list[str]]] = []
    for entry in os.environ.get("FASTMALADE_CUDA_ARCHS", DEFAULT_CUDA_ARCHITECTURES).replace(";", ",").split(","):
        number, _, suffix = entry.strip().partition("+")
        if not number and not suffix:
            continue
        if not number.rstrip("af").isdigit() or suffix not in {"", "PTX"}:
            raise ValueError(f"FASTMALADE_CUDA_ARCHS: expected entries like 90 or 90+PTX, got {entry.strip()!r}")
        found.append((f"sm_{number}", ["-gencode", f"arch=compute_{number},code=sm_{number}"]))
        if suffix:
            found.append((f"compute_{number}", ["-gencode", f"arch=compute_{number},code=compute_{number}"]))
    return found


def cuda_runtime() -> Path | None:
    """CUDA's runtime as a static library: the module then loads on machines without CUDA."""
    nvcc = find_nvcc()
    homes = [Path(nvcc).parents[1], Path(nvcc).resolve().parents[1]] if nvcc else []
    homes += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    for home in homes:
        for pattern in ("lib64", "lib", "targets/*/lib"):
            for found in home.glob(f"{pattern}/libcudart_static.a"):
                return found
    return None


def no_cuda_reason() -> str | None:
    """Why the CUDA extension is not even tried, or None."""
    if is_set("FASTMALADE_NO_CUDA"):
        return "built with FASTMALADE_NO_CUDA=1"
    if not is_set("FORCE_CUDA") and not gpu_is_visible():
        return "no NVIDIA GPU was visible at build time; FORCE_CUDA=1 builds it all the same"
    if not cuda_architectures():
        return "built with an empty FASTMALADE_CUDA_ARCHS"
    if find_nvcc() is None:
        return "nvcc was not there at build time (CUDACXX, CUDA_HOME and the path were searched)"
    if cuda_runtime() is None:
        return f"libcudart_static.a was not found beside {find_nvcc()} at build time"
    return None


class Unit(NamedTuple):
    """One source file to compile: `command` lacks only the source and the object."""

    part: str  # what cannot be built without it: "cpu", "cuda" or an instruction set
    source: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return self.source if self.part in {"cpu", "cuda"} else f"{self.source} for {self.part}"

    @property
    def object(self) -> Path:
        """Where its object lies. Each command has a file of its own, so a build with other flags takes no wrong one."""
        digest = hashlib.sha256(" ".join(self.command).encode()).hexdigest()[:12]
        return OBJECTS / f"{Path(self.source).stem}-{self.part}-{digest}.o"

    def is_current(self) -> bool:
        """Whether the object is newer than every file that went into it."""
        try:
            made = self.object.stat().st_mtime
            rule = self.object.with_suffix(".d").read_text(encoding="utf-8").partition(": ")[2]
            names = re.findall(r"(?:\\ |[^\s\\])+", rule)
            return all(Path(name.replace("\\ ", " ")).stat().st_mtime <= made for name in names)
        except FileNotFoundError:
            return False

    def compile(self) -> tuple[str, float]:
        """Makes the object; returns what the compiler printed and the seconds it took."""
        self.object.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.object.with_suffix(".unfinished.o")
        command = [*self.command, "-MMD", "-MF", str(self.object.with_suffix(".d")), "-c", self.source]
        command += ["-o", str(unfinished)]
        start, clock = time.time(), time.perf_counter()
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if ended.returncode != 0:
            raise CompileError(f"{' '.join(command)}\n{ended.stdout}exit status {ended.returncode}")
        os.utime(unfinished, (start, start))  # so that a source edited meanwhile is newer
        unfinished.replace(self.object)
        return ended.stdout, time.perf_counter() - clock


def compile_all(units: Sequence[Unit]) -> dict[str, str]:
    """Compiles what is not current, on all processors and in the order given; returns which parts failed and why."""
    outdated = [unit for unit in units if not unit.is_current()]
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    failures: dict[str, str] = {}
    if not outdated:
        return failures
    say(f"{len(outdated)} of {len(units)} native files to compile, {workers} at a time")
    start = time.perf_counter()
    threads = ThreadPoolExecutor(workers)
    try:
        running = {threads.submit(unit.compile): unit for unit in outdated}
        for number, ended in enumerate(as_completed(running), 1):
            unit, error = running[ended], ended.exception()
            output, seconds = ("", 0.0) if error else ended.result()
            say(f"[{number}/{len(outdated)}] {unit}: {f'{seconds:.0f} s' if error is None else 'FAILED'}")
            print(output, end="", flush=True)
            if error is not None:
                failures.setdefault(unit.part, f"{unit} does not compile: {error}")
    finally:
        threads.shutdown(cancel_futures=True)  # interrupted: the rest is not even begun
    say(f"compiled in {time.perf_counter() - start:.0f} s")
    return failures


class BuildNative(build_ext):
    """Compiles the sources of both extensions side by side, links what could be compiled and records the outcome."""

    def run(self) -> None:
        self.isas = list(isa_flags())
        self.reasons: dict[str, str | None] = {"cpu": None, "cuda": no_cuda_reason()}  # why a part is not built
        force_cuda = is_set("FORCE_CUDA") and not is_set("FASTMALADE_NO_CUDA")
        self.required = {"cpu": is_set("FASTMALADE_REQUIRE_NATIVE"), "cuda": force_cuda}
        self.attempted = [part for part, reason in self.reasons.items() if reason is None]
        super().run()
        for part, reason in self.reasons.items():
            if reason is not None:
                remove_extension(self, f"_{part}")
        write_build_info(package_folder(self), self.isas, self.reasons, self.compiler)

    def build_extensions(self) -> None:
        """What run() does once the compiler is known."""
        objects = self.compile_parts()
        # Link even if the extension is newer than its objects: it may have been linked from others.
        self.force = self.compiler.force = True
        for extension in list(self.extensions):
            part = extension.name.rpartition("_")[2]
            if self.reasons[part] is None:
                extension.extra_objects = objects[part]
                try:
                    self.build_extension(extension)
                except Exception as error:  # recorded and shown, like a file that does not compile
                    self.reasons[part] = f"linking failed: {type(error).__name__}: {error}"
            if self.reasons[part] is not None:
                self.leave_out(extension, part)

    def compile_parts(self) -> dict[str, list[str]]:
        """Objects of each extension. What fails is taken from `isas` or noted in `reasons`."""
        if not hasattr(self.compiler, "compiler_so_cxx"):
            expected = f"expected a compiler with the options of g++, got {type(self.compiler).__name__}"
            self.reasons |= dict.fromkeys(self.attempted, expected)
            return {}
        units = self.units()
        failures = compile_all(units)
        self.reasons["cuda"] = self.reasons["cuda"] or failures.get("cuda")
        self.reasons["cpu"] = failures.get("cpu") or failures.get("baseline")
        lost = [isa for isa in self.isas if isa in failures]
        if lost and self.reasons["cpu"] is None:
            if self.required["cpu"]:
                raise CompileError(failures[lost[0]])
            for isa in lost:
                warn_loudly(f"{failures[isa]}\nThe package is built WITHOUT the instruction set {isa}.")
                self.isas.remove(isa)
            units = self.units()
            self.reasons["cpu"] = compile_all(units).get("cpu")  # the module again, which lists the others alone
        objects: dict[str, list[str]] = {"cpu": [], "cuda": []}
        for unit in units:
            objects["cuda" if unit.part == "cuda" else "cpu"].append(str(unit.object))
        objects["cuda"].append(str(cuda_runtime()))  # an archive resolves what comes before it
        return objects

    def leave_out(self, extension: Extension, part: str) -> None:
        """Goes on without one extension, or ends the build where it was required."""
        if self.required[part]:
            raise CompileError(f"{extension.name} was not built: {self.reasons[part]}")
        if part in self.attempted:
            missing = "native CPU backend; it computes in torch" if part == "cpu" else "CUDA backend"
            warn_loudly(f"{self.reasons[part]}\nThe package is built WITHOUT its {missing}.")
        else:
            say(f"no CUDA backend: {self.reasons[part]}")
        # The distribution keeps its extension: the wheel stays one of this platform, laid out as usual.
        self.extensions.remove(extension)

    def units(self) -> list[Unit]:
        """Everything to compile, longest first, so that all processors end at about the same time."""
        import pybind11

        compiler = self.compiler.compiler_so_cxx
        folders = ("kernels", pybind11.get_include(), *self.compiler.include_dirs)
        host = (*compiler, *COMMON_FLAGS, "-pthread", *(f"-I{folder}" for folder in folders))
        units = []
        if self.reasons["cuda"] is None:
            options = [option for _, options in cuda_architectures() for option in options]
            nvcc = (str(find_nvcc()), *NVCC_FLAGS, "--threads", "2", *options, "-Ikernels")
            units += [Unit("cuda", source, nvcc) for source in CUDA_SOURCES]
        for isa in reversed(self.isas):
            command = (*compiler, *kernel_flags(isa), f"-DFASTMALADE_ISA={isa}", "-Ikernels")
            units.append(Unit(isa, KERNEL_SOURCE, command))
        macros = [f"-DFASTMALADE_WITH_{isa.upper()}" for isa in self.isas]
        units.insert(-1, Unit("cpu", "csrc/cpu_module.cpp", (*host, *macros)))  # baseline takes less
        if self.reasons["cuda"] is None:
            names = ", ".join(name for name, _ in cuda_architectures())
            command = (*host, f'-DFASTMALADE_CUDA_ARCHITECTURES="{names}"')
            units += [Unit("cuda", source, command) for source in CUDA_HOST_SOURCES]
        return [*units, *(Unit("cpu", source, host) for source in ENGINE_SOURCES)]


class BuildPython(build_py):
    """Adds the kernels that are Python, and records that no extension was asked for: build_ext does not run then."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there fastmalade.kernels finds them where they are
            folder = package_folder(self) / "kernels" / "triton"
            self.mkpath(str(folder))
            for path in sorted((ROOT / "kernels" / "triton").glob("*.py")):
                self.copy_file(str(path), str(folder / path.name))
        if not self.distribution.ext_modules:
            command = self.get_finalized_command("build_ext")
            remove_extension(command, "_cpu")
            remove_extension(command, "_cuda")
            write_build_info(package_folder(self), [], dict.fromkeys(("cpu", "cuda"), no_extension_reason()), None)


def package_folder(command: build_ext | build_py) -> Path:
    """Where the built package is: the source tree if editable or in place, else the build folder."""
    in_place = getattr(command, "editable_mode", False) or getattr(command, "inplace", False)
    return ROOT / "fastmalade" if in_place else Path(command.build_lib) / "fastmalade"


def remove_extension(command: build_ext, name: str) -> None:
    """Takes away the product of an earlier build, which would be loaded although this one has none."""
    for stale in package_folder(command).glob(f"{name}.*"):
        stale.unlink()


def write_build_info(folder: Path, isas: Sequence[str], reasons: dict[str, str | None], compiler: object) -> None:
    """Writes _build_info.json: {"cpu": {"built", "reason", "isas", "flags", "compiler"}, "cuda": the same}."""
    cpu = list(isas) if reasons["cpu"] is None else []
    cuda = [name for name, _ in cuda_architectures()] if reasons["cuda"] is None else []
    command = " ".join(getattr(compiler, "compiler_so_cxx", []))
    info = {
        "cpu": {"isas": cpu, "flags": {isa: kernel_flags(isa) for isa in cpu}, "compiler": command},
        "cuda": {"isas": cuda, "flags": NVCC_FLAGS, "compiler": find_nvcc()},
    }
    for part, record in info.items():
        record |= {"built": reasons[part] is None, "reason": reasons[part], "platform": platform.platform()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def extensions() -> list[Extension]:
    """Both extension modules. BuildNative gives them their objects, or leaves out what cannot be built."""
    flags = {"cuda": ["-pthread", "-ldl", "-lrt"], "cpu": ["-pthread"]}
    return [Extension(f"fastmalade._{part}", [], extra_link_args=flags[part], language="c++") for part in flags]


if __name__ == "__main__":
    reason = no_extension_reason()
    if reason is not None:
        warn_loudly(f"no native CPU backend: {reason}.")
        if is_set("FASTMALADE_REQUIRE_NATIVE") and not is_set("FASTMALADE_NO_EXTENSION"):
            raise CompileError(f"FASTMALADE_REQUIRE_NATIVE=1, but {reason}")
    setup(
        ext_modules=extensions() if reason is None else [],
        cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    )
