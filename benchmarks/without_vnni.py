"""Run a command as on an x86 processor without VNNI, at full speed, on one that has it.

``python benchmarks/without_vnni.py VENV -- COMMAND`` (as root, with a C compiler, and with what
``benchmarks/requirements-without-vnni.txt`` names). Libraries choose their kernels by the CPUID instruction. So each
CPUID in the libraries of the virtual environment VENV is replaced, **for good**, by UD2, an instruction of the same
length that raises SIGILL; ``without_vnni.c`` handles the signal and answers as this processor would without AVX-512,
AMX and VNNI. COMMAND runs in a mount namespace in which every process loads that handler, and in which
``/proc/cpuinfo`` tells the same. ``--keep-avx512`` hides VNNI alone, as on Skylake-X. VENV then serves under this
script only: make one for the purpose.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
_STARTS = range(48, 80)
"""Bytes before a place from where it is decoded towards it: x86 code falls into step after a few instructions."""
_LONGEST = 15  # bytes of an x86 instruction
_VNNI = r"avx_vnni\w*|avx512_4?vnniw?"
_WIDE = rf"{_VNNI}|avx512\w*|avx_ifma|amx_\w+"


def cpuid_places(path: Path) -> Iterator[int]:
    """Yield the offsets of a library's CPUID instructions; the same two bytes inside others are left alone."""
    data, decoder = path.read_bytes(), Cs(CS_ARCH_X86, CS_MODE_64)
    with path.open("rb") as file:
        sections = [
            (s["sh_offset"], s["sh_offset"] + s["sh_size"])
            for s in ELFFile(file).iter_sections()
            if s["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and s["sh_type"] != "SHT_NOBITS"
        ]
    for start, end in sections:
        for match in re.finditer(re.escape(CPUID), data[start:end]):
            place = start + match.start()
            hits = [_reaches(data, place - back, place, decoder) for back in _STARTS if place - back >= start]
            if not hits or sum(hits) * 2 > len(hits):
                yield place


def _reaches(data: bytes, at: int, place: int, decoder: Cs) -> bool:
    while at < place:
        decoded = next(decoder.disasm_lite(data[at : at + _LONGEST], 0, 1), None)
        at += decoded[1] if decoded else 1
    return at == place


def hide_in(venv: Path) -> None:
    """Replace every CPUID below ``venv``; a second call finds none left."""
    for path in sorted(venv.rglob("*.so*")):
        if path.is_symlink() or not path.is_file() or path.read_bytes()[:4] != b"\x7fELF":
            continue
        data = bytearray(path.read_bytes())
        places = list(cpuid_places(path)) if CPUID in data else []
        for place in places:
            data[place : place + 2] = UD2
        if places:
            path.write_bytes(data)
            print(f"{path.name}: {len(places)} CPUID instructions replaced", file=sys.stderr)


def main() -> None:
    """Hide what was asked for, and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("command", nargs="+")
    parser.add_argument("--keep-avx512", action="store_true")
    options = parser.parse_args()
    hide_in(options.venv)
    with tempfile.TemporaryDirectory() as made:
        handler, preload, cpuinfo = (Path(made) / n for n in ("handler.so", "ld.so.preload", "cpuinfo"))
        source = Path(__file__).with_suffix(".c")
        keep = ["-DKEEP_AVX512"] if options.keep_avx512 else []
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", *keep, "-o", handler, source, "-ldl"], check=True)
        preload.write_text(f"{handler}\n")
        flag = _VNNI if options.keep_avx512 else _WIDE
        text = Path("/proc/cpuinfo").read_text()
        cpuinfo.write_text(re.sub(rf"(?<=\s)(?:{flag})(?=\s)", "", text))
        Path("/etc/ld.so.preload").touch()
        mounts = f"mount --bind {cpuinfo} /proc/cpuinfo && mount --bind {preload} /etc/ld.so.preload"
        run = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *options.command]
        sys.exit(subprocess.run(run, env=os.environ, check=False).returncode)


if __name__ == "__main__":
    main()
