"""Which processor is this, and how do a library's 8-bit kernels add up on it?"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Flags of x86 instructions that add four products of 8-bit numbers straight into 32 bits."""
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
"""What systems call it, in lower case: Linux and macOS ``x86_64``, Windows ``AMD64``."""
_CPUINFO = Path("/proc/cpuinfo")
_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""oneDNN, inside OpenVINO, reads the first of them that is set; the second is its old name."""
_VNNI_UNDER: dict[str, frozenset[str]] = {
    "sse41": frozenset(),
    "avx": frozenset(),
    "avx2": frozenset(),
    "avx2_vnni": frozenset({"avx_vnni"}),
    "avx2_vnni_2": frozenset({"avx_vnni"}),
    "avx512_core": frozenset(),
    "avx512_core_vnni": frozenset({"avx512_vnni"}),
    "avx512_core_bf16": frozenset({"avx512_vnni"}),
}
"""Value of the cap -> which of :data:`VNNI` it leaves; any other value leaves all (oneDNN, ``cpu_isa_traits.hpp``)."""


@dataclass(frozen=True)
class Processor:
    """A processor as its system names it."""

    machine: str
    """``x86_64``, ``aarch64``."""
    name: str
    flags: frozenset[str]
    """Feature flags as Linux names them; empty where they cannot be read."""

    @property
    def is_x86(self) -> bool:
        """Whether its 8-bit kernels are judged at all."""
        return self.machine.lower() in _X86

    @property
    def has_vnni(self) -> bool:
        """Whether it adds 8-bit products in 32 bits at once; not known to is no."""
        return bool(self.flags & VNNI)


@cache
def this_processor() -> Processor:
    """Read the processor of this machine."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""  # only Linux has the file; flags then count as absent
    return parse_processor(text, platform.machine(), platform.processor())


def parse_processor(cpuinfo: str, machine: str, fallback: str = "") -> Processor:
    """Read the text of ``/proc/cpuinfo``; what it does not tell stays empty."""
    rows = (line.partition(":") for line in cpuinfo.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in rows}
    flags = fields.get("flags") or fields.get("Features") or ""
    return Processor(machine, fields.get("model name") or fallback or machine, frozenset(flags.split()))


def adds_pairs_in_16_bits(
    processor: Processor | None = None, environment: Mapping[str, str] | None = None
) -> bool | None:
    """Tell whether oneDNN's 8-bit kernels add two products in 16 bits here, and clamp what does not fit.

    ``vpmaddubsw`` does, on x86 without VNNI; no setting of OpenVINO avoids it. ONNX Runtime has exact kernels for such
    a processor, and :func:`gacq_deploy.backends.ort.session_options` asks for them.

    Args:
        processor: default: this machine's.
        environment: default: this process's; it caps what oneDNN may use.

    Returns:
        None where it is not judged: on other processors than x86.
    """
    processor = processor or this_processor()
    if not processor.is_x86:
        return None
    return not processor.flags & _vnni_left(os.environ if environment is None else environment)


def describe_processor() -> dict[str, str]:
    """Return what a verdict about an engine holds for."""
    processor = this_processor()
    return {"machine": processor.machine, "name": processor.name}


def instruction_cap(environment: Mapping[str, str] | None = None) -> str:
    """Return ``NAME=value`` of the variable that caps oneDNN's instructions, or nothing."""
    environment = os.environ if environment is None else environment
    return next((f"{name}={environment[name]}" for name in _CAPS if environment.get(name)), "")


def _vnni_left(environment: Mapping[str, str]) -> frozenset[str]:
    _, _, value = instruction_cap(environment).partition("=")
    return _VNNI_UNDER.get(value.lower(), VNNI)
