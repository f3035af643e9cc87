from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gacq_deploy.artifact.records import ModelRecord, PolishRecord
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.inspection.artifact import Inspection, SiteView
from gacq_deploy.parity.report import assemble, measured
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.report.collect import Collected, collect
from gacq_deploy.report.pictures import Pictures, Tile
from gacq_deploy.report.self_contained import break_at_dots, mark_commands
from gacq_deploy.report.stage import ensure_report, render, write_report
from gacq_deploy.report.verdict import judge_run
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.sealed import write_sealed
from tests.support.artifacts.diagnostics import example_diagnostics
from tests.support.artifacts.sensitivity import example_study
from tests.support.programs.commands import invoke
from tests.unit.report.conftest import write_recipe

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}",
)
LIMIT = 2_000_000


class Reader(HTMLParser):
    """Elements with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def _polish(word: str, *, kept: bool = True) -> PolishRecord:
    return PolishRecord(
        steps=20,
        loss_start=0.5,
        loss_end=0.25 if kept else 0.5,
        kept=kept,
        parameters=("activation_scales", word),
        objective=word,
        effective_samples=9.0,
        notes=(),
    )


def _full(root: Path, word: str = "plain") -> Collected:
    """Everything a page can show, with ``word`` wherever a run brings text."""
    write_recipe(root, name=word, description=f"About {word}.")
    diagnostics = example_diagnostics(blocks=[word, "mid"])
    stages = tuple(replace(stage, notes=(f"note {word}",)) for stage in diagnostics.stages)
    rows = [{"bucket": 0, "timestep_max": 990, "timestep_min": 10, "sqnr_db": 30.0, "cosine": 0.999}]
    comparison = measured(
        "budget", word, f"{word}@ort-cpu", {"eps_sqnr_db": 1.0}, worst={"bucket": word}, by_timestep=rows
    )
    parity = assemble(
        (comparison,), ParitySection(), trajectory={}, noise_floor={}, subject={"versions": {word: word}}
    )
    site = SiteView(f"{word}:weight", 8, word, 1, word, word, word, 0.1, 0.2, 0.01)
    inspection = Inspection(
        word, word, {"source": word}, word, (site,), (), {word: {word: word}}, (), _polish(word), (), (), {}
    )
    tile = Tile("data:image/png;base64,AA==", "data:,", "data:,", word, 7, 30.6, worst=True)
    bare = collect(RunDirectory(root))
    return replace(
        bare,
        diagnostics=replace(diagnostics, stages=stages),
        parity=parity,
        inspection=inspection,
        sensitivity=example_study(word),
        pictures=Pictures((tile, replace(tile, worst=False)), size=(2, 2), caption=word, mean_db=40.0),
    )


@pytest.mark.parametrize("word", HOSTILE, ids=("script", "image", "attribute", "template"))
def test_names_from_the_run_stay_text(tmp_path: Path, word: str) -> None:
    found, plain = _full(tmp_path, word), _full(tmp_path)
    page, usual = Reader(render(found, judge_run(found))), Reader(render(plain, judge_run(plain)))
    shown, expected = (  # where a name may break depends on the name
        [(tag, sorted(attributes)) for tag, attributes in reader.elements if tag != "wbr"]
        for reader in (page, usual)
    )
    assert shown == expected
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert page.text.count(word) >= 12


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    found = _full(tmp_path)
    page = render(found, judge_run(found))
    links = [
        a.get(key) or ""
        for _, a in Reader(page).elements
        for key in ("src", "href", "srcset", "action")
        if key in a
    ]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket", page)


def test_the_policy_allows_only_the_pages_own_script_and_style(tmp_path: Path) -> None:
    found = _full(tmp_path)
    page = render(found, judge_run(found))
    policy = next(
        a["content"] or "" for tag, a in Reader(page).elements if tag == "meta" and "http-equiv" in a
    )
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [a for _, a in Reader(page).elements if "style" in a]


def test_everything_has_its_place_and_the_page_stays_small(tmp_path: Path) -> None:
    found = _full(tmp_path)
    page = render(found, judge_run(found))
    reader = Reader(page)
    sections = [a.get("id") for tag, a in reader.elements if tag == "section"]
    assert sections == [
        "verdict", "images", "error", "gates", "speed", "weights", "sensitivity", "layers", "settings",
    ]  # fmt: skip
    assert reader.count("svg") == 2 + 5 * 3
    assert all("aria-label" in a for tag, a in reader.elements if tag == "svg")
    assert all(a.get("alt") for tag, a in reader.elements if tag == "img")
    assert len(page.encode()) < LIMIT
    assert page == render(found, judge_run(found))


def _section(page: str, name: str) -> str:
    """Return the words of one section."""
    inside = page.partition(f'<section id="{name}"')[2].partition("</section>")[0]
    return " ".join(Reader(f"<section{inside}").text.split())


def test_the_polish_stands_beside_the_weights(tmp_path: Path) -> None:
    found = _full(tmp_path)
    assert isinstance(found.inspection, Inspection)
    page = render(found, judge_run(found))
    sentence = (
        "20 steps on activation scales, plain; objective plain; loss 0.5 before, 0.25 after (-50%). Kept."
    )
    assert sentence in _section(page, "weights")
    assert sentence not in _section(page, "verdict")
    undone = replace(found, inspection=replace(found.inspection, polish=_polish("plain", kept=False)))
    assert "Not kept: the model was better before" in render(undone, judge_run(undone))
    bare = replace(found, inspection=replace(found.inspection, polish=None))
    assert "Polish." not in Reader(render(bare, judge_run(bare))).text


def test_what_learning_gained_stands_above_the_errors(tmp_path: Path) -> None:
    found = _full(tmp_path)
    page = render(found, judge_run(found))
    assert _section(page, "error").startswith("Error per timestep Learning gained ")


def test_a_page_is_written_again_only_when_it_would_show_something_else(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    run = RunDirectory(tmp_path)
    assert ensure_report(run) == run.report_html
    first = run.report_html.read_bytes()
    os.utime(run.report_html, (1, 1))
    ensure_report(run)
    assert run.report_html.stat().st_mtime == 1
    write_sealed(run.sensitivity_json, example_study("plain").document())
    ensure_report(run)
    second = run.report_html.read_bytes()
    assert b"down.0" in second
    assert first != second
    write_report(run, images=False)
    assert run.report_html.read_bytes() != second
    ensure_report(run)
    assert run.report_html.read_bytes() == second
    run.sensitivity_json.unlink()
    ensure_report(run)
    assert run.report_html.read_bytes() == first
    for damaged in (b"", b"\xff\xfe", first.replace(b"gacq-deploy-shows", b"something-else")):
        run.report_html.write_bytes(damaged)
        ensure_report(run)
        assert run.report_html.read_bytes() == first


def test_a_run_of_many_blocks_and_samples_stays_small(tmp_path: Path) -> None:
    many = example_diagnostics(blocks=[f"down_blocks.{i}" for i in range(120)], steps=50, trajectories=20)
    found = replace(_full(tmp_path), diagnostics=many)
    assert len(render(found, judge_run(found)).encode()) < LIMIT


def test_a_bare_run_says_what_makes_the_rest(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    written = write_report(RunDirectory(tmp_path))
    page = Reader(written.path.read_text(encoding="utf-8")).text
    assert written.path == tmp_path / "report.html"
    assert written.verdict == "unjudged"
    for command in ("calibrate", "export --onnx", "build-trt", "parity", "bench", "sensitivity"):
        assert f"gacq-deploy {command}" in page
    assert set(written.missing) == {
        "inspection", "diagnostics", "export", "compiled", "parity", "bench", "sensitivity", "pictures",
    }  # fmt: skip
    assert not list(tmp_path.glob(".gacq-tmp-*"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a run directory"):
        write_report(RunDirectory(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_page_goes_where_it_is_asked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_recipe(run)
    (tmp_path / "out").mkdir()
    done = invoke(["report", str(run), "-o", str(tmp_path / "out" / "a.html"), "--no-images", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == str(tmp_path / "out" / "a.html")
    assert {p.name for p in run.iterdir()} == {"recipe.yaml", ".gacq-run"}


def test_a_page_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    with pytest.raises(UsageError):
        write_report(RunDirectory(tmp_path), tmp_path / "recipe.yaml" / "a.html")


def test_commands_between_backticks_are_marked_and_escaped() -> None:
    assert mark_commands("Run `a <b>` now.") == "Run <code>a &lt;b&gt;</code> now."
    assert mark_commands("a ` b <i>") == "a ` b &lt;i&gt;"


def test_names_break_behind_dots_slashes_and_colons_only() -> None:
    assert break_at_dots("down_blocks.0.resnets") == "down_blocks.<wbr>0.<wbr>resnets"
    assert break_at_dots("ort-cpu/int8.cpu.onnx") == "ort-cpu/<wbr>int8.<wbr>cpu.<wbr>onnx"
    assert break_at_dots("mid.conv_shortcut:input") == "mid.<wbr>conv_shortcut:<wbr>input"
    assert break_at_dots("<b>.x") == "&lt;b&gt;.<wbr>x"
    assert break_at_dots("...") == ".<wbr>.<wbr>."
    assert break_at_dots("") == ""


def test_what_fails_stands_open_with_its_remedy_and_what_holds_is_folded(tmp_path: Path) -> None:
    found = _full(tmp_path)
    page = render(found, judge_run(found))
    verdict, _, rest = page.partition('<section id="images">')
    text = " ".join(Reader(verdict).text.split())
    assert "SQNR of single steps, worst timestep bucket (dB): 1, needs at least 20" in text
    assert "What helps." in text
    assert "calibrate with more effort (--preset standard)" in text
    assert f"sensitivity {tmp_path} --min-sqnr 21" in text
    gates = rest[rest.index('<section id="gates">') : rest.index('<section id="speed">')]
    assert "0 of 6 hold" in gates
    assert "<details" in gates
    assert not re.findall(r"<details[^>]* open", page)


def test_the_model_stands_first_and_the_recipe_second(tmp_path: Path) -> None:
    found = _full(tmp_path)
    model = ModelRecord(
        source="/somewhere/my ddpm/unet", revision=None, family="UNet2DModel", weights_sha256="0", scheduler={},
        prediction_type="epsilon", sample_shape=(3, 24, 24), conditioning={"class_labels": {"num_classes": 10}},
    )  # fmt: skip
    page = render(replace(found, model=model), judge_run(found))
    assert "<title>my ddpm: Parity failed</title>" in page
    assert "<h1>my ddpm</h1>" in page
    text = " ".join(Reader(page.partition("<body>")[2]).text.split())
    order = ["my ddpm", "UNet2DModel", "Recipe plain", "Parity failed"]
    assert [text.index(word) for word in order] == sorted(text.index(word) for word in order)
