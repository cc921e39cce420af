"""Native part of the build: a static library per CPU instruction set and the extension that chooses one.

The rest of the configuration is in pyproject.toml. Without a working compiler, or with
FASTMALADE_NO_EXTENSION=1, the package is built without the extension and runs on its torch backend;
fastmalade/_build_info.json records what was built, with which flags, or why not.
FASTMALADE_CPU_ISAS="avx2" leaves out every other instruction set but the portable one.

Where nvcc is found the CUDA kernels are built too, for the GPUs of FASTMALADE_CUDA_ARCHS: compute capabilities without
the dot, separated by commas, "+PTX" behind those that newer GPUs compile for themselves. Unset is "80,90+PTX", empty or
FASTMALADE_NO_CUDA=1 builds none.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
INFO_FILE = "_build_info.json"

# Contraction is off so that a multiply and an add are fused exactly where the source says fma. Never
# -march=native or a global -mavx*: a wheel must run on any processor of its platform. -g0 undoes the
# interpreter's own -g, which would make the module ten times as large.
COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden"]
# No exceptions and no type information: both would put weak symbols into objects full of wide instructions.
KERNEL_FLAGS = [*COMMON_FLAGS, "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-Wno-psabi"]
X86_ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
}
KERNEL_SOURCE = "kernels/cpu/isa/kernels.cpp"
ENGINE_SOURCES = ["kernels/cpu/host/engine.cpp", "kernels/cpu/host/model_cache.cpp", "kernels/cpu/host/pool.cpp"]
EXTENSION_SOURCES = ["csrc/cpu_module.cpp", *ENGINE_SOURCES]

CUDA_EXTENSION = "fastmalade._cuda"
CUDA_SOURCES = ["kernels/cuda/engine.cu", "kernels/cuda/device.cu"]
CUDA_HOST_SOURCES = ["csrc/cuda_module.cpp", "kernels/cuda/choice.cpp"]
# -fmad=false as -ffp-contract=off above: every form of a kernel then rounds alike.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
DEFAULT_CUDA_ARCHITECTURES = "80,90+PTX"


def isa_flags() -> dict[str, list[str]]:
    """Instruction sets this platform can be built for, with the flags each adds; baseline is always first."""
    wide = X86_ISA_FLAGS if platform.machine().lower() in {"x86_64", "amd64"} else {}
    chosen = os.environ.get("FASTMALADE_CPU_ISAS")
    if chosen is None:
        return {"baseline": [], **wide}
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    unknown = sorted(set(names) - {"baseline", *wide})
    if unknown:
        raise ValueError(f"FASTMALADE_CPU_ISAS: expected any of {', '.join(['baseline', *wide])}, got {unknown[0]!r}")
    return {"baseline": [], **{name: flags for name, flags in wide.items() if name in names}}


def native_dependencies() -> list[str]:
    """Every native file: a change in any of them rebuilds what is made of them."""
    found = [*ROOT.glob("kernels/**/*.h"), *ROOT.glob("kernels/**/*.cpp"), *ROOT.glob("csrc/*")]
    found += [*ROOT.glob("kernels/**/*.cu"), *ROOT.glob("kernels/**/*.cuh")]
    return [*sorted(str(path.relative_to(ROOT)) for path in found), "setup.py"]


def library_name(isa: str) -> str:
    """Static library of one instruction set."""
    return f"fastmalade_cpu_{isa}"


def kernel_libraries() -> list[tuple[str, dict[str, object]]]:
    """The same source once per instruction set."""
    return [
        (
            library_name(isa),
            {
                "sources": [KERNEL_SOURCE],
                "cflags": [*KERNEL_FLAGS, "-fPIC", *flags],
                "macros": [("FASTMALADE_ISA", isa)],
                "include_dirs": ["kernels"],
                "obj_deps": {"": native_dependencies()},
            },
        )
        for isa, flags in isa_flags().items()
    ]


def warn_loudly(message: str) -> None:
    """Says something a user should not miss in a build's output."""
    rule = "*" * 100
    print(f"{rule}\n{message}\n{rule}", file=sys.stderr, flush=True)


class BuildKernelLibraries(build_clib):
    """Builds each library in a folder of its own: they share one source, so their objects share one name.

    At once, a thread for each: one library is one source file, which takes the compiler most of a minute.
    """

    def build_libraries(self, libraries: list) -> None:
        self.failures: dict[str, str] = {}

        def build(library: tuple) -> None:
            alone = copy.copy(self)
            alone.build_temp = os.path.join(self.build_temp, library[0])
            try:
                build_clib.build_libraries(alone, [library])
            except Exception as error:  # whatever goes wrong, a package without this library is still of use
                self.failures[library[0]] = f"{type(error).__name__}: {error}"

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(build, libraries))


class BuildNative(build_ext):
    """Builds the extension from the libraries that could be compiled, and records the outcome."""

    def run(self) -> None:
        self.built_isas: list[str] = []
        self.cuda_reason = no_cuda_reason()
        reason = None
        try:
            self.build_native()
        except Exception as error:  # see above: the reason is recorded and shown, never swallowed
            reason = f"building the extension failed: {type(error).__name__}: {error}"
        if reason is not None:
            self.built_isas = []
            warn_loudly(f"fastmalade: {reason}\nThe package is built WITHOUT its native CPU backend; it uses torch.")
            remove_extension(self, "_cpu")
            self.cuda_reason = self.cuda_reason or reason
            # The distribution keeps its extension: the wheel stays one of this platform, laid out as usual.
            self.extensions = []
        if self.cuda_reason is not None:
            remove_extension(self, "_cuda")
        write_build_info(package_folder(self), self.built_isas, reason, self.compiler, self.cuda_reason)

    def build_extension(self, extension: Extension) -> None:
        """Builds one extension; that of CUDA after its kernels, and without harm to the other where that fails."""
        if extension.name != CUDA_EXTENSION:
            super().build_extension(extension)
            return
        try:
            extension.extra_objects = compile_cuda(Path(self.build_temp))
            super().build_extension(extension)
        except Exception as error:  # the reason is recorded and shown, and the rest of the package works without
            self.cuda_reason = f"building the CUDA extension failed: {type(error).__name__}: {error}"
            warn_loudly(f"fastmalade: {self.cuda_reason}\nThe package is built WITHOUT its CUDA backend.")

    def build_native(self) -> None:
        """Compiles libraries and extension, raising where nothing usable comes out."""
        self.run_command("build_clib")
        libraries = self.get_finalized_command("build_clib")
        failures = libraries.failures
        if library_name("baseline") in failures:
            raise RuntimeError(f"the portable kernels do not compile ({failures[library_name('baseline')]})")
        for name, message in failures.items():
            warn_loudly(f"fastmalade: {name} does not compile ({message}); its instruction set is left out.")
        kept = [library for library in self.distribution.libraries if library[0] not in failures]
        self.distribution.libraries = libraries.libraries = kept
        self.built_isas = [isa for isa in isa_flags() if library_name(isa) not in failures]
        for extension in self.extensions:
            if extension.name == CUDA_EXTENSION:
                continue
            extension.define_macros += [(f"FASTMALADE_WITH_{isa.upper()}", None) for isa in self.built_isas]
        super().run()


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
            write_build_info(package_folder(self), [], NO_EXTENSION_REASON, None, NO_EXTENSION_REASON)


def package_folder(command: build_ext | build_py) -> Path:
    """Where the built package is: the source tree if editable or in place, else the build folder."""
    in_place = getattr(command, "editable_mode", False) or getattr(command, "inplace", False)
    return ROOT / "fastmalade" if in_place else Path(command.build_lib) / "fastmalade"


def remove_extension(command: build_ext, name: str) -> None:
    """Takes away the product of an earlier build, which would be loaded although this one has none."""
    for stale in package_folder(command).glob(f"{name}.*"):
        stale.unlink()


def write_build_info(
    folder: Path, isas: list[str], reason: str | None, compiler: object, cuda_reason: str | None
) -> None:
    """Writes _build_info.json: {"cpu": {"built", "isas", "flags", "compiler", "reason"}, "cuda": the same}."""
    command = getattr(compiler, "compiler_so", None) or []
    info = {
        "cpu": {
            "built": reason is None,
            "reason": reason,
            "isas": isas,
            "flags": {isa: [*KERNEL_FLAGS, *isa_flags()[isa]] for isa in isas},
            "compiler": " ".join(command) if isinstance(command, list) else str(command),
            "platform": platform.platform(),
        },
        "cuda": {
            "built": cuda_reason is None,
            "reason": cuda_reason,
            "isas": [] if cuda_reason else [name for name, _ in cuda_architectures()],
            "flags": NVCC_FLAGS,
            "compiler": find_nvcc(),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def no_extension_reason() -> str | None:
    """Why the extension is not even tried, or None."""
    if os.environ.get("FASTMALADE_NO_EXTENSION", "0") not in {"", "0"}:
        return "built with FASTMALADE_NO_EXTENSION=1"
    try:
        import pybind11  # noqa: F401
    except ImportError as error:
        return f"pybind11 was not there at build time ({error})"
    return None


def find_nvcc() -> str | None:
    """CUDA's compiler: of CUDACXX, of CUDA_HOME, on the path, or where it is usually installed."""
    home = os.environ.get("CUDA_HOME")
    for candidate in (os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    return None


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


def no_cuda_reason() -> str | None:
    """Why the CUDA extension is not even tried, or None."""
    if os.environ.get("FASTMALADE_NO_CUDA", "0") not in {"", "0"}:
        return "built with FASTMALADE_NO_CUDA=1"
    if not cuda_architectures():
        return "built with an empty FASTMALADE_CUDA_ARCHS"
    if find_nvcc() is None:
        return "nvcc was not there at build time (CUDACXX, CUDA_HOME and the path were searched)"
    if cuda_runtime() is None:
        return f"libcudart_static.a was not found beside {find_nvcc()} at build time"
    return None


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


def compile_cuda(folder: Path) -> list[str]:
    """Objects of the CUDA sources, and the runtime that they need."""
    nvcc, runtime = find_nvcc(), cuda_runtime()
    assert nvcc is not None
    assert runtime is not None
    folder.mkdir(parents=True, exist_ok=True)
    options = [option for _, options in cuda_architectures() for option in options]
    newest = max((ROOT / name).stat().st_mtime for name in native_dependencies())
    stamp = folder / "cuda_command.txt"
    objects = []
    for source in CUDA_SOURCES:
        target = folder / f"{Path(source).stem}.cuda.o"
        command = [nvcc, *NVCC_FLAGS, "--threads", "2", *options, f"-I{ROOT / 'kernels'}", "-c", str(ROOT / source)]
        command += ["-o", str(target)]
        line = " ".join(command)
        known = stamp.read_text(encoding="utf-8") if stamp.is_file() else ""
        # Half a minute for each source: not again when nothing has changed.
        if not (target.is_file() and target.stat().st_mtime > newest and line in known.splitlines()):
            print(line, flush=True)
            subprocess.run(command, check=True)
            stamp.write_text(f"{known}{line}\n", encoding="utf-8")
        objects.append(str(target))
    return [*objects, str(runtime)]


def cuda_extensions() -> list[Extension]:
    """The extension module fastmalade._cuda, where it can be tried."""
    import pybind11

    reason = no_cuda_reason()
    if reason is not None:
        print(f"fastmalade: no CUDA backend: {reason}.", flush=True)
        return []
    names = ", ".join(name for name, _ in cuda_architectures())
    return [
        Extension(
            CUDA_EXTENSION,
            sources=list(CUDA_HOST_SOURCES),
            include_dirs=["kernels", pybind11.get_include()],
            depends=native_dependencies(),
            define_macros=[("FASTMALADE_CUDA_ARCHITECTURES", f'"{names}"')],
            extra_compile_args=[*COMMON_FLAGS, "-pthread"],
            extra_link_args=["-pthread", "-ldl", "-lrt"],
            language="c++",
            optional=True,  # a build without it is complete
        )
    ]


def extensions() -> list[Extension]:
    """The extension modules fastmalade._cpu and, where it can be tried, fastmalade._cuda."""
    import pybind11

    return [
        *cuda_extensions(),
        Extension(
            "fastmalade._cpu",
            sources=list(EXTENSION_SOURCES),
            include_dirs=["kernels", pybind11.get_include()],
            depends=native_dependencies(),
            extra_compile_args=[*COMMON_FLAGS, "-pthread"],
            extra_link_args=["-pthread"],
            language="c++",
        ),
    ]


if __name__ == "__main__":
    NO_EXTENSION_REASON = no_extension_reason()
    if NO_EXTENSION_REASON:
        warn_loudly(f"fastmalade: no native CPU backend: {NO_EXTENSION_REASON}.")
    setup(
        libraries=[] if NO_EXTENSION_REASON else kernel_libraries(),
        ext_modules=[] if NO_EXTENSION_REASON else extensions(),
        cmdclass={"build_clib": BuildKernelLibraries, "build_ext": BuildNative, "build_py": BuildPython},
    )
