"""Runs the AVX-512 kernels in an emulator of a Skylake-X (Bochs) and compares every bit with AVX2.

    python tools/emulate_avx512.py --kernel vmlinuz

For machines whose processor has no AVX-512; on one that has it, the tests run the kernels themselves. The driver of
tools/check_native.py is built for both instruction sets: the AVX-512 one boots as the only program of a Linux guest,
the other runs on this machine, which needs AVX2. From Debian it takes the packages bochs, bochs-term, bochsbios,
vgabios, isolinux, syslinux-common, genisoimage, cpio and busybox-static, and a kernel image, for example that of
linux-image-cloud-amd64 (apt-get download, dpkg -x).

Exit status 0 if all results are the same, 1 on a difference, 2 where something is missing.
"""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from check_native import build_driver, load_setup, run_driver

ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
BIOS, VGA_BIOS = Path("/usr/share/bochs/BIOS-bochs-latest"), Path("/usr/share/vgabios/vgabios.bin")
PROGRAMS = ("bochs", "genisoimage", "busybox", "cpio")
# The emulator's sizes of the compacted forms of XSAVE are not those that Linux expects: left on, Linux would hide AVX.
BOOT = "console=ttyS0 mitigations=off clearcpuid=xsaves,xsavec,mpx nopku quiet"
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox grep -m1 "model name" /proc/cpuinfo
echo BEGIN
/driver dump
echo END $?
/bin/busybox poweroff -f
"""
# Only the text display runs without a viewer. Nobody reads its output, and after some 64 kB it would block: it is told
# to show as little as possible.
SETTINGS = """display_library: term
vga: extension=none, update_freq=1, realtime=0
cpu: model=corei7_skylake_x, count=1, ips=100000000, ignore_bad_msrs=1
clock: sync=none
megs: 512
romimage: file={bios}
vgaromimage: file={vga}
ata0: enabled=1
ata0-master: type=cdrom, path={disc}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={serial}
log: {log}
panic: action=fatal
sound: waveoutdrv=dummy
"""


def make_disc(folder: Path, kernel: Path, driver: Path) -> Path:
    """A bootable CD image with the kernel and ``driver`` as its only program."""
    root, disc = folder / "root", folder / "disc"
    for path in (root / "bin", root / "proc", root / "dev", disc / "isolinux"):
        path.mkdir(parents=True)
    shutil.copy(driver, root / "driver")
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    (root / "init").write_text(INIT, encoding="utf-8")
    (root / "init").chmod(0o755)
    names = "\n".join(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
    with open(disc / "initrd", "wb") as archive:
        command = ["cpio", "--create", "--quiet", "--format=newc"]
        subprocess.run(command, cwd=root, input=names.encode(), stdout=archive, check=True)
    shutil.copy(kernel, disc / "vmlinuz")
    shutil.copy(ISOLINUX, disc / "isolinux")
    shutil.copy(LDLINUX, disc / "isolinux")
    menu = f"DEFAULT linux\nPROMPT 0\nLABEL linux\n KERNEL /vmlinuz\n INITRD /initrd\n APPEND {BOOT}\n"
    (disc / "isolinux" / "isolinux.cfg").write_text(menu, encoding="utf-8")
    image = folder / "disc.iso"
    boot = ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    command = ["genisoimage", "-quiet", "-o", str(image), *boot, "-boot-info-table", "-R", str(disc)]
    subprocess.run(command, check=True)
    return image


def emulate(folder: Path, disc: Path, limit: float) -> list[str]:
    """What the guest wrote between BEGIN and END; raises if it did not finish."""
    serial, log, settings, commands = (folder / name for name in ("serial", "log", "settings", "commands"))
    settings.write_text(SETTINGS.format(bios=BIOS, vga=VGA_BIOS, disc=disc, serial=serial, log=log), encoding="utf-8")
    commands.write_text("c\n", encoding="utf-8")  # Debian's build waits in its debugger until told to continue
    command = ["bochs", "-q", "-f", str(settings), "-rc", str(commands)]
    # It only starts on a terminal.
    master, terminal = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    started, shown = time.monotonic(), -1
    try:
        while process.poll() is None:
            if time.monotonic() - started > limit:
                raise RuntimeError(f"no end after {limit:.0f} s")
            time.sleep(1)
            count = len(_written(serial).partition("BEGIN")[2].splitlines()[1:])
            if count != shown:
                print(f"\r{count} results", end="", file=sys.stderr, flush=True)
                shown = count
    finally:
        process.kill()
        process.wait()
        os.close(master)
    print(file=sys.stderr)
    text = _written(serial)
    if "\nEND 0\n" not in text:
        raise RuntimeError(f"the guest did not finish:\n{text[-2000:]}")
    return text.split("BEGIN\n")[1].split("END 0\n")[0].splitlines()


def _written(serial: Path) -> str:
    """What the guest has written so far."""
    return serial.read_text(encoding="utf-8", errors="replace").replace("\r", "") if serial.exists() else ""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=Path, required=True, help="a Linux kernel image for x86-64")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which to give up")
    arguments = parser.parse_args()
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    missing += [str(p) for p in (arguments.kernel, ISOLINUX, LDLINUX, BIOS, VGA_BIOS) if not p.is_file()]
    if load_setup().widest_isa() in {None, "baseline"}:
        missing.append("AVX2 with FMA")
    if missing:
        print(f"not here: {', '.join(missing)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        narrow, wide = (build_driver(folder, isa, ["-static"], "-O3") for isa in ("avx2", "avx512"))
        expected = run_driver(narrow, "dump").splitlines()
        try:
            found = emulate(folder, make_disc(folder, arguments.kernel.resolve(), wide), arguments.limit)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    # The last line of each names its instruction set and counts the comparisons that failed inside.
    print(f"{expected[-1]}; {found[-1]}")
    different = sum(a != b for a, b in zip(expected[:-1], found[:-1], strict=False))
    if different or len(found) != len(expected):
        print(f"{different} of {len(expected) - 1} results differ, {len(found) - 1} found")
        return 1
    print(f"{len(found) - 1} results equal to the bit with AVX2 and with emulated AVX-512")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
