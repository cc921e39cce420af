"""setup.py: what it chooses to build, how it compiles, and what it does about a compiler that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from repository import ROOT, load_script

VARIABLES = ("CC", "CXX", "CFLAGS", "CUDACXX", "CUDA_HOME", "FORCE_CUDA")
# Stands for g++, its linker and nvcc: makes the files that it is asked for, or fails as FAILS says.
COMPILER = f"""#!{sys.executable}
import os, pathlib, sys
after = lambda flag: sys.argv[sys.argv.index(flag) + 1]
with open(os.environ["CALLS"], "a") as calls:
    print(*sys.argv[1:], file=calls)
if os.environ["FAILS"] in sys.argv or os.environ["FAILS"] == "everything":
    raise SystemExit("a message of the compiler")
if "-MF" in sys.argv:
    pathlib.Path(after("-MF")).write_text("object: " + after("-c"))
pathlib.Path(after("-o")).write_text("")
"""


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, in an environment without its variables."""
    for name in [name for name in os.environ if name.startswith("FASTMALADE_")] + list(VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return load_script("setup.py")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, ["baseline", "avx2", "avx512"]), ("", ["baseline"]), ("avx512, baseline", ["baseline", "avx512"])],
)
def test_instruction_sets(build, monkeypatch, value, expected) -> None:
    monkeypatch.setattr(build, "IS_X86", True)
    if value is not None:
        monkeypatch.setenv("FASTMALADE_CPU_ISAS", value)
    assert list(build.isa_flags()) == expected


def test_the_native_instruction_set_is_one_of_this_machine(build, monkeypatch) -> None:
    monkeypatch.setenv("FASTMALADE_CPU_ISAS", "native")
    widest = build.widest_isa()
    assert list(build.isa_flags()) == ["baseline", *({widest} - {"baseline", None})] or widest is None


def test_an_unknown_instruction_set_is_refused(build, monkeypatch) -> None:
    monkeypatch.setenv("FASTMALADE_CPU_ISAS", "avx2,sse9")
    with pytest.raises(ValueError, match=r"FASTMALADE_CPU_ISAS: expected any of baseline, .*native, got 'sse9'"):
        build.isa_flags()


def test_cuda_is_tried_where_a_gpu_is_visible_or_when_forced(build, monkeypatch) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: "/somewhere/bin/nvcc")
    monkeypatch.setattr(build, "cuda_runtime", lambda: Path("/somewhere/lib/libcudart_static.a"))
    monkeypatch.setattr(build, "gpu_is_visible", lambda: True)
    assert build.no_cuda_reason() is None
    monkeypatch.setattr(build, "gpu_is_visible", lambda: False)
    assert "no NVIDIA GPU was visible" in build.no_cuda_reason()
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert build.no_cuda_reason() is None
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert "nvcc was not there" in build.no_cuda_reason()
    monkeypatch.setenv("FASTMALADE_NO_CUDA", "1")
    assert build.no_cuda_reason() == "built with FASTMALADE_NO_CUDA=1"


def test_a_file_is_compiled_again_when_a_header_or_a_flag_changes(build, monkeypatch, tmp_path, compiler) -> None:
    monkeypatch.chdir(tmp_path)
    header = tmp_path / "a header.h"
    header.write_text("int answer();\n")
    Path("source.cpp").write_text('#include "a header.h"\nint answer() { return VALUE; }\n')
    unit = build.Unit("cpu", "source.cpp", (compiler, "-DVALUE=42", f"-I{tmp_path}"))
    assert not unit.is_current()
    assert build.compile_all([unit]) == {}
    assert unit.is_current()
    assert unit.object.stat().st_size > 0
    later = unit.object.stat().st_mtime + 1
    os.utime(header, (later, later))
    assert not unit.is_current()
    assert not build.Unit("cpu", "source.cpp", (compiler, "-DVALUE=43", f"-I{tmp_path}")).is_current()


def test_a_failed_file_is_named_with_command_and_message_and_the_rest_is_compiled(
    build, monkeypatch, tmp_path, compiler, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.cpp").write_text("int good;\n")
    Path("bad.cpp").write_text('#error "no such thing"\n')
    bad, good = (build.Unit(part, f"{name}.cpp", (compiler,)) for part, name in (("avx2", "bad"), ("cpu", "good")))
    failures = build.compile_all([bad, good])
    assert list(failures) == ["avx2"]
    assert failures["avx2"].startswith(f"bad.cpp for avx2 does not compile: {compiler} ")
    assert "no such thing" in failures["avx2"]
    assert good.is_current()
    assert not bad.is_current()
    printed = capfd.readouterr().out
    assert "2 of 2 native files to compile" in printed
    assert "bad.cpp for avx2: FAILED" in printed


class Tree:
    """A copy of the sources in which whole builds run, with a compiler that only pretends."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json", "*.safetensors", "*.npz")
        for name in ("fastmalade", "kernels", "csrc"):
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.root / name)
        self.compiler = folder / "bin" / "compiler"
        self.compiler.parent.mkdir()
        self.compiler.write_text(COMPILER)
        self.compiler.chmod(0o755)
        (folder / "lib").mkdir()
        (folder / "lib" / "libcudart_static.a").write_text("")
        self.calls = folder / "calls"

    def build(self, fails: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs setup.py with the compiler failing at the argument ``fails``."""
        kept = {k: v for k, v in os.environ.items() if k not in VARIABLES and not k.startswith("FASTMALADE_")}
        tool = str(self.compiler)
        kept |= {"CC": tool, "CXX": tool, "LDSHARED": tool, "LDCXXSHARED": tool, "CUDACXX": tool}
        self.calls.write_text("")
        return subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=self.root, text=True, check=False,
            capture_output=True, env={**kept, "CALLS": str(self.calls), "FAILS": fails, **variables},
        )  # fmt: skip

    def info(self) -> dict:
        return json.loads((self.root / "fastmalade" / "_build_info.json").read_text())

    def extensions(self) -> list[str]:
        return sorted(path.name.partition(".")[0] for path in (self.root / "fastmalade").glob("_c*.so"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    pytest.importorskip("pybind11")
    return Tree(tmp_path)


@pytest.mark.slow
def test_a_failed_build_goes_on_without_and_says_so_unless_native_code_is_required(tree: Tree) -> None:
    ended = tree.build("everything", FASTMALADE_CPU_ISAS="baseline")
    assert ended.returncode == 0, ended.stderr
    assert "The package is built WITHOUT its native CPU backend" in ended.stderr
    assert "a message of the compiler" in ended.stderr
    assert not tree.info()["cpu"]["built"]
    assert "a message of the compiler" in tree.info()["cpu"]["reason"]
    assert tree.extensions() == []

    ended = tree.build("everything", FASTMALADE_CPU_ISAS="baseline", FASTMALADE_REQUIRE_NATIVE="1")
    assert ended.returncode != 0
    assert "fastmalade._cpu was not built" in ended.stderr
    assert "a message of the compiler" in ended.stderr


@pytest.mark.slow
def test_an_instruction_set_that_does_not_compile_is_left_out_unless_native_code_is_required(tree: Tree, build) -> None:
    if not build.IS_X86:
        pytest.skip("this platform has one instruction set")
    ended = tree.build("-mavx512f")
    assert ended.returncode == 0, ended.stderr
    assert "The package is built WITHOUT the instruction set avx512" in ended.stderr
    assert tree.info()["cpu"]["isas"] == ["baseline", "avx2"]
    assert tree.extensions() == ["_cpu"]
    module = [call for call in tree.calls.read_text().splitlines() if "csrc/cpu_module.cpp" in call][-1]
    assert "-DFASTMALADE_WITH_AVX2" in module
    assert "AVX512" not in module

    ended = tree.build("-mavx512f", FASTMALADE_REQUIRE_NATIVE="1")
    assert ended.returncode != 0
    assert "kernels.cpp for avx512 does not compile" in ended.stderr


@pytest.mark.slow
def test_an_extension_newer_than_its_objects_is_linked_again(tree: Tree, build) -> None:
    if not build.IS_X86:
        pytest.skip("this platform has one instruction set")
    for isas, compiled in (("avx2", True), ("baseline", True), ("avx2", False)):
        ended = tree.build("nothing", FASTMALADE_CPU_ISAS=isas)
        assert ended.returncode == 0, ended.stderr
        calls = tree.calls.read_text().splitlines()
        assert any(" -c " in call for call in calls) is compiled
        link = next(call for call in calls if "fastmalade/_cpu." in call)
        assert ("kernels-avx2-" in link) is (isas == "avx2")


@pytest.mark.slow
def test_cuda_is_built_when_forced_and_then_its_failure_is_an_error(tree: Tree) -> None:
    variables = {"FASTMALADE_CPU_ISAS": "baseline", "FORCE_CUDA": "1"}
    ended = tree.build("nothing", **variables)
    assert ended.returncode == 0, ended.stderr
    assert tree.extensions() == ["_cpu", "_cuda"]
    assert tree.info()["cuda"]["isas"] == ["sm_80", "sm_90", "compute_90"]
    link = next(call for call in tree.calls.read_text().splitlines() if "fastmalade/_cuda." in call)
    assert link.index(".o ") < link.index("libcudart_static.a")
    assert ".o " not in link[link.index("libcudart_static.a") :]

    ended = tree.build("nothing", **variables, FASTMALADE_NO_CUDA="1")
    assert ended.returncode == 0, ended.stderr
    assert tree.extensions() == ["_cpu"], "the extension of an earlier build would be loaded"
    assert tree.info()["cuda"]["reason"] == "built with FASTMALADE_NO_CUDA=1"

    shutil.rmtree(tree.root / "build")
    ended = tree.build("-fmad=false", **variables)
    assert ended.returncode != 0
    assert "fastmalade._cuda was not built: kernels/cuda/" in ended.stderr
