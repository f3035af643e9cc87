from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from gacq_deploy.backends.trt.library import TRT_NAMES
from gacq_deploy.engines import catalogue
from gacq_deploy.engines.catalogue import (
    BUILT_IN,
    CANONICAL,
    CPU,
    FLOAT,
    EngineRecord,
    default_engines,
    engine_named,
    known_engines,
    rules_for,
)
from gacq_deploy.errors import BackendUnavailable, UsageError
from gacq_deploy.lint.rules import RULE_SETS
from tests.support.programs.commands import ROOT
from tests.support.programs.engine_records import install_package

ADDED = """
from gacq_deploy.engines import EngineRecord
RECORD = EngineRecord(name={name!r}, backend="a:B", install="pip install a", graphs=("int8.onnx",))
"""


@pytest.fixture
def catalogue_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of installed packages that a fresh catalogue reads."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(catalogue, "known_engines", known_engines.__wrapped__)
    for name in ("gacq_added_engine", "gacq_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_names_are_unique_and_every_library_is_installed_by_an_extra() -> None:
    assert len({record.name for record in BUILT_IN}) == len(BUILT_IN)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    commands = {f"pip install 'gacq-deploy[{extra}]'" for extra in project["optional-dependencies"]}
    assert {record.install for record in BUILT_IN} <= commands
    assert engine_named("ort-cpu").install == "pip install 'gacq-deploy[cpu]'"


def test_what_is_derived_agrees_with_what_others_say() -> None:
    assert tuple(record.name for record in BUILT_IN if record.compiled) == TRT_NAMES
    assert {record.rules for record in BUILT_IN if record.rules} == set(RULE_SETS)
    assert set(rules_for(CANONICAL)) == {"tensorrt", "openvino"}
    assert rules_for(CPU) == ("ort-cpu",)
    assert rules_for(FLOAT) == ()
    assert default_engines() == ("ort-cpu", "openvino")
    assert [record.name for record in BUILT_IN if not record.is_quantized] == [catalogue.FLOAT_ENGINE]
    assert engine_named("float").runner == catalogue.REFERENCE


@pytest.mark.parametrize("record", BUILT_IN, ids=lambda r: r.name)
def test_every_name_that_is_imported_later_exists(record: EngineRecord) -> None:
    assert record.load() is not None
    for target in (record.kernels, record.unfit):
        assert target is None or callable(record._import(target))


def test_a_package_adds_an_engine(catalogue_of: Path) -> None:
    install_package(catalogue_of, ADDED.format(name="new"), "gacq_added_engine:RECORD")
    assert engine_named("new").graphs == (CANONICAL,)
    assert list(catalogue.known_engines()) == [*(r.name for r in BUILT_IN), "new"]
    with pytest.raises(UsageError, match="'old' is not known") as caught:
        engine_named("old")
    assert caught.value.hint.endswith(f"{BUILT_IN[-1].name}, new.")


@pytest.mark.parametrize(
    ("source", "value", "said"),
    [
        (ADDED.format(name="openvino"), "gacq_broken:RECORD", "which there is already"),
        ("RECORD = 3", "gacq_broken:RECORD", "is a int, not an EngineRecord"),
        ("import no_such_library", "gacq_broken:RECORD", "No module named 'no_such_library'"),
        ("", "gacq_broken:RECORD", "RECORD"),
    ],
)
def test_a_package_that_adds_none_is_named(catalogue_of: Path, source: str, value: str, said: str) -> None:
    install_package(catalogue_of, source, value, "gacq_broken")
    with pytest.raises(BackendUnavailable) as caught:
        catalogue.known_engines()
    assert said in caught.value.message
    assert "gacq_broken:RECORD" in caught.value.message
    assert "gacq_broken" in caught.value.hint
    assert engine_named("ort-cpu").name == "ort-cpu", "what is not asked of it goes on working"
