from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.backends import processor
from gacq_deploy.backends.processor import (
    Processor,
    adds_pairs_in_16_bits,
    instruction_cap,
    parse_processor,
    this_processor,
)

BOTH = frozenset({"avx2", "avx512f", "avx512_vnni", "avx_vnni"})
ICE_LAKE = frozenset({"avx2", "avx512f", "avx512_vnni"})
ALDER_LAKE = frozenset({"avx2", "avx_vnni"})
SKYLAKE_X = frozenset({"avx2", "avx512f", "avx512bw"})
ZEN_3 = frozenset({"avx2"})


def x86(flags: frozenset[str]) -> Processor:
    return Processor("x86_64", "a processor", flags)


@pytest.mark.parametrize(
    ("flags", "adds"),
    [
        (BOTH, False),
        (ICE_LAKE, False),
        (ALDER_LAKE, False),
        (frozenset({"amx_int8"}), False),
        (SKYLAKE_X, True),
        (ZEN_3, True),
        (frozenset(), True),
    ],
)
def test_only_vnni_keeps_openvino_from_16_bits(flags: frozenset[str], adds: bool) -> None:
    assert adds_pairs_in_16_bits(x86(flags), {}) is adds


@pytest.mark.parametrize(
    ("cap", "flags", "adds"),
    [
        ("SSE41", BOTH, True),
        ("AVX", BOTH, True),
        ("AVX2", BOTH, True),
        ("avx2", BOTH, True),
        ("AVX512_CORE", BOTH, True),
        ("AVX512_CORE_VNNI", BOTH, False),
        ("AVX512_CORE_BF16", ICE_LAKE, False),
        ("AVX512_CORE_VNNI", ALDER_LAKE, True),
        ("AVX2_VNNI", ALDER_LAKE, False),
        ("AVX2_VNNI_2", ALDER_LAKE, False),
        ("AVX2_VNNI", ICE_LAKE, True),
        ("AVX512_CORE_AMX", ICE_LAKE, False),
        ("ALL", BOTH, False),
        ("no such instructions", BOTH, False),
        ("", BOTH, False),
    ],
)
def test_what_caps_onednn_counts_for_openvino(cap: str, flags: frozenset[str], adds: bool) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        assert adds_pairs_in_16_bits(x86(flags), {name: cap}) is adds


def test_the_new_name_of_the_cap_goes_before_the_old_one() -> None:
    both = {"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX2"}
    assert instruction_cap(both) == "ONEDNN_MAX_CPU_ISA=ALL"
    assert adds_pairs_in_16_bits(x86(BOTH), both) is False
    empty = {"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "AVX2"}
    assert instruction_cap(empty) == "DNNL_MAX_CPU_ISA=AVX2"
    assert instruction_cap({}) == ""


def test_other_machines_are_not_judged() -> None:
    arm = Processor("aarch64", "Neoverse", frozenset({"asimddp"}))
    assert adds_pairs_in_16_bits(arm, {"ONEDNN_MAX_CPU_ISA": "AVX2"}) is None


def test_a_processor_is_read_as_linux_names_it() -> None:
    text = "processor : 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor : 1\n"
    found = parse_processor(text, "x86_64")
    assert found == Processor("x86_64", "AMD EPYC 7763", frozenset({"fpu", "avx2", "avx_vnni"}))
    assert found.has_vnni
    arm = parse_processor("processor: 0\nFeatures : fp asimddp\n", "aarch64", "Neoverse")
    assert arm == Processor("aarch64", "Neoverse", frozenset({"fp", "asimddp"}))
    assert not arm.is_x86
    assert parse_processor("", "AMD64") == Processor("AMD64", "AMD64", frozenset())


def test_a_system_that_does_not_tell_counts_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "none")
    found = this_processor.__wrapped__()
    assert found.name
    assert not found.flags
    assert not found.has_vnni


def test_this_machine_has_a_name() -> None:
    assert this_processor().name
    assert this_processor() is this_processor()
