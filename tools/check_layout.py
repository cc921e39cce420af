"""Checks where the files of the CPU kernels lie and what they include.

    python tools/check_layout.py                 the checkout that this file belongs to
    python tools/check_layout.py --root FOLDER

kernels/cpu/isa is compiled once for each instruction set, kernels/cpu/host once. An object full of wide instructions
must not define anything that the linker may put in place of a portable copy, or the package crashes on processors that
lack the instructions. So these rules hold:

- files in isa/, and no others, name the namespace of their instruction set (FASTMALADE_ISA);
- isa/ includes itself, cpu/kernels.h and common/, and only those headers of the system that define no templates and no
  inline functions of external linkage; kernels.h and common/ keep to the same headers;
- host/ does not include isa/.

What a compiler makes of it all is checked by ``tools/check_native.py symbols``. Exit status 1 if a rule is broken.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# The intrinsics are always inlined or static, in gcc as in clang.
PLAIN_HEADERS = frozenset({"stdint.h", "immintrin.h", "arm_neon.h"})


@dataclass(frozen=True)
class Area:
    """A folder and what its files may contain."""

    folder: str
    names_isa: bool  # every file mentions FASTMALADE_ISA; otherwise none does
    includes: tuple[str, ...]  # beginnings of the project's files that it may include
    system: frozenset[str] | None  # headers of the system; None for any


AREAS = (
    Area("kernels/cpu/isa", True, ("cpu/isa/", "cpu/kernels.h", "common/"), PLAIN_HEADERS),
    Area("kernels/cpu/host", False, ("cpu/host/", "cpu/kernels.h", "common/"), None),
    Area("kernels/cpu", False, ("common/",), PLAIN_HEADERS),
    Area("kernels/common", False, ("common/",), PLAIN_HEADERS),
)


def broken_rules(root: Path) -> list[str]:
    """One line for each finding in the checkout ``root``."""
    findings = []
    for area in AREAS:
        files = sorted(path for path in (root / area.folder).glob("*") if path.suffix in {".h", ".cpp"})
        if not files:
            findings.append(f"{area.folder}: expected C++ files, got none")
        for path in files:
            text = path.read_text(encoding="utf-8")
            findings += [f"{path.relative_to(root)}: {message}" for message in _messages(area, text)]
    return findings


def _messages(area: Area, text: str) -> list[str]:
    messages = []
    if ("FASTMALADE_ISA" in COMMENT.sub("", text)) != area.names_isa:
        if area.names_isa:
            messages.append("expected code in the namespace FASTMALADE_ISA, got none: then it belongs in host/")
        else:
            messages.append("expected no FASTMALADE_ISA: what is compiled for each instruction set belongs in isa/")
    for kind, name in INCLUDE.findall(text):
        if kind == '"' and not name.startswith(area.includes):
            messages.append(f"expected includes from {', '.join(area.includes)}, got {name!r}")
        elif kind == "<" and area.system is not None and name not in area.system:
            messages.append(f"expected no system headers but {', '.join(sorted(area.system))}, got <{name}>")
    return messages


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to look at")
    findings = broken_rules(parser.parse_args().root.resolve())
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
