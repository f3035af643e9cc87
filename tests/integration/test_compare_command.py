"""Does `compare` show what the records say, rank only what can be ranked, and say what is not there?"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import gacq_deploy as gd
from gacq_deploy.bench.report import (
    BASELINE,
    BenchCandidate,
    BenchReport,
    Host,
    IntegerShare,
    Ratio,
    Spread,
    Timing,
)
from gacq_deploy.compare.grounds import find_grounds
from gacq_deploy.compare.records import RunRecords, read_records
from gacq_deploy.export.record import load_export
from gacq_deploy.parity.report import load_report
from gacq_deploy.progress import SILENT
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.workflow.picture import ensure_comparison
from tests.support.programs.commands import invoke

INT8 = "ort-cpu/int8.cpu.onnx"
HOST = Host(cpu="some cpu", cores=4, platform="Linux x86_64", python="3.11", load_average=0.1)


def save_bench(
    root: Path, speed: float, *, spread: float = 0.01, host: Host = HOST, label: str = "ort-1"
) -> None:
    """Write figures of our own about the graphs that lie in the run."""
    run = RunDirectory(root)
    export = load_export(run)
    taken = Spread.of([1 / speed - spread, 1 / speed, 1 / speed + spread])
    times = Spread.of([speed - spread, speed, speed + spread])
    candidate = BenchCandidate(
        name=INT8, engine="ort-cpu", file="int8.cpu.onnx", label=label, file_bytes=1, load_seconds=0, loaded_bytes=1,
        timings=(Timing(batch=1, wall_ms=taken, cpu_ms=taken, peak_bytes=1),),
        kernels=IntegerShare(planned=1, integer=1, float_modules=()),
    )  # fmt: skip
    BenchReport(
        subject={"artifact_sha256": export.artifact_sha256, "files": {n: f.sha256 for n, f in export.files.items()}},
        host=host, threads=1, repeats=3, batches=(1,), candidates=(candidate,),
        ratios=(Ratio(candidate=INT8, baseline=BASELINE, batch=1, cpu=times, wall=times),), skipped={},
    ).save(run.bench_json)  # fmt: skip


@pytest.fixture(scope="module")
def pair(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one artifact, of different speed, the first with pictures; the second fails a stricter bound."""
    folder = tmp_path_factory.mktemp("pair")
    first = Path(shutil.copytree(finished_run, folder / "first run"))
    ensure_comparison(RunDirectory(first), load_export(RunDirectory(first)), SILENT)
    second = Path(shutil.copytree(finished_run, folder / "second"))
    recipe = second / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("image_psnr_db: 10.0", "image_psnr_db: 99.0"))
    run = RunDirectory(second)
    load_report(run.parity_json).under(run.load_recipe().parity).save(run.parity_json)
    save_bench(first, 2.0)
    save_bench(second, 1.5)
    return first, second


@pytest.fixture
def copies(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be damaged."""
    first, second = (Path(shutil.copytree(run, tmp_path / run.name)) for run in pair)
    return first, second


def _compared(*runs: Path) -> Any:
    done = invoke(["compare", *map(str, runs), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def _row(document: Any, section: str, start: str) -> Any:
    return next(r for r in document["rows"] if r["section"] == section and r["name"].startswith(start))


def test_the_figures_are_those_of_the_records(pair: tuple[Path, Path]) -> None:
    document = _compared(*pair)
    assert [run["name"] for run in document["runs"]] == ["first run", "second"]
    assert [run["facts"]["parity"] for run in document["runs"]] == ["passed", "FAILED"]
    assert document["runs"][0]["facts"]["bits"] == "W7A8"
    run = RunDirectory(pair[0])
    report, export = load_report(run.parity_json), load_export(run)
    for candidate, metrics in report.fidelity.items():
        row = _row(document, f"quality of {candidate}", "PSNR of same-seed images, mean")
        assert [value["number"] for value in row["values"]] == [metrics["image_psnr_db"]] * 2
    size = _row(document, "size", "int8.onnx")
    assert size["values"][0]["number"] == export.files["int8.onnx"].bytes
    worst = _row(document, "output SQNR in calibration (dB)", "after polish, worst")
    assert worst["values"][0]["text"] == worst["values"][1]["text"]
    assert worst["best"] == [], "equal figures have no best"
    speed = _row(document, f"speed of {INT8}", "times faster")
    assert ([v["number"] for v in speed["values"]], speed["best"]) == ([2.0, 1.5], [0])
    calls = _row(document, f"speed of {INT8}", "CPU time of a call")
    assert calls["best"] == [0]


def test_a_failed_gate_stands_with_value_and_bound(pair: tuple[Path, Path]) -> None:
    document = _compared(*pair)
    failed = document["runs"][1]["failed_gates"]
    assert {gate["metric"] for gate in failed} == {"image_psnr_db"}
    assert failed[0]["bound"] == 99
    gates = _row(document, "verdict", "gates that do not hold")
    assert [value["number"] for value in gates["values"]] == [0, len(failed)]
    assert gates["best"] == [], "the bounds are not the same"
    shown = invoke(["compare", *map(str, pair)]).stdout
    assert (
        "not ranked: gates. The bounds differ: parity.budget.image_psnr_db (first run: 10.0; second: 99.0)."
        in shown
    )
    assert ">= 99" in shown
    assert "2.00 *" in shown
    assert "1.50 *" not in shown


def test_what_a_run_lacks_is_said_with_the_command(copies: tuple[Path, Path]) -> None:
    first, second = copies
    (first / "bench.json").unlink()
    graph = second / "onnx" / "int8.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    document = _compared(first, second)
    lacks = {lack["part"]: lack for lack in document["runs"][0]["lacks"]}
    assert set(lacks) == {"bench"}
    assert shlex.split(lacks["bench"]["command"]) == ["gacq-deploy", "bench", str(first)]
    stale = {lack["part"]: lack for lack in document["runs"][1]["lacks"]}
    assert set(stale) >= {"graphs", "parity", "bench"}
    assert "altered" in stale["graphs"]["reason"]
    assert document["runs"][1]["facts"]["parity"] == "stale"
    assert all(row["best"] == [] for row in document["rows"]), "only one run is left to be ranked"
    shown = invoke(["compare", str(first), str(second)]).stdout
    assert "(stale)" in shown
    assert f"\nNext: {lacks['bench']['command']}\n" in shown


def test_a_run_that_is_not_calibrated_is_shown_as_such(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(pair[0] / "recipe.yaml", tmp_path / "new")
    document = _compared(pair[0], tmp_path / "new", pair[1])
    new = document["runs"][1]
    assert [lack["part"] for lack in new["lacks"]] == ["artifact"], "what can be made now"
    assert new["facts"]["parity"] == "not judged"
    assert _row(document, f"speed of {INT8}", "times faster")["best"] == [0]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_asks_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "compared.html"
    done = invoke(["compare", *map(str, pair), "-o", str(file), "--json"])
    assert json.loads(done.stdout)["page"] == str(file)
    page = _Page(file.read_text(encoding="utf-8"))
    (policy,) = (a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    links = [a[k] for _, a in page.tags for k in ("src", "href") if k in a]
    assert all(link is not None and link.startswith(("#", "data:")) for link in links)
    assert not [t for t, a in page.tags if t == "script" or "style" in a]
    assert [t for t, a in page.tags if t == "img"] == ["img"], "one run has pictures"
    assert {a["aria-label"] for t, a in page.tags if a.get("role") == "img"} == {"best"}
    for words in ("first run", "FAILED", "≥ 99", "★", "Not ranked: gates."):
        assert words in page.text
    assert f"gacq-deploy report {pair[1]}" in page.text
    assert list(tmp_path.iterdir()) == [file]


def test_what_comes_from_a_run_is_escaped(copies: tuple[Path, Path], tmp_path: Path) -> None:
    name = copies[0].rename(tmp_path / "<img src=x>")
    file = tmp_path / "compared.html"
    assert invoke(["compare", str(name), str(copies[1]), "-o", str(file)]).exit_code == 0
    assert "<img src=x>" not in file.read_text(encoding="utf-8")
    assert "<img src=x>" in _Page(file.read_text(encoding="utf-8")).text


def test_nothing_is_written_unless_asked(pair: tuple[Path, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in pair[0].parent.rglob("*")}
    _compared(*pair)
    assert {p: p.stat().st_mtime_ns for p in pair[0].parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("runs", "code", "says"),
    [
        (["{first}"], 2, "two runs or more, got 1"),
        (["{first}", "{first}/../first run"], 2, "is named twice"),
        (["{parent}"], 5, "it holds 2 runs"),
        (["{first}", "{parent}/none"], 5, "there is no such folder"),
        ([], 2, "RUN RUN ..."),
    ],
)
def test_what_cannot_be_compared_is_refused(
    pair: tuple[Path, Path], runs: list[str], code: int, says: str
) -> None:
    places = [run.format(first=pair[0], parent=pair[0].parent) for run in runs]
    done = invoke(["compare", *places, "--json"])
    assert done.exit_code == code, done.output
    assert says in json.loads(done.stdout)["error"]["message"]


Change = Callable[[RunRecords], RunRecords]


def _with_model(**changes: Any) -> Change:
    def change(records: RunRecords) -> RunRecords:
        assert records.artifact is not None
        model = records.artifact.model.model_copy(update=changes)
        return replace(records, artifact=replace(records.artifact, model=model))

    return change


def _with_protocol(**changes: Any) -> Change:
    def change(records: RunRecords) -> RunRecords:
        assert records.parity is not None
        protocol = records.parity.protocol.model_copy(update=changes)
        return replace(records, parity=records.parity.model_copy(update={"protocol": protocol}))

    return change


def _with_bench(**changes: Any) -> Change:
    def change(records: RunRecords) -> RunRecords:
        assert records.bench is not None
        return replace(records, bench=records.bench.model_copy(update=changes))

    return change


def _with_samples(records: RunRecords) -> RunRecords:
    assert records.artifact is not None
    return replace(records, artifact=replace(records.artifact, samples_sha256="1" * 64))


JUDGED = {"steps", "images", "gates"}


@pytest.mark.parametrize(
    ("change", "topics", "says"),
    [
        (_with_model(weights_sha256="0" * 64), JUDGED | {"calibration"}, "other weights"),
        (_with_model(sample_shape=(1, 16, 16)), JUDGED, "other seeds, prompts or classes"),
        (_with_protocol(images=3), JUDGED, "parity.images differs (a: 4; b: 3)"),
        (_with_protocol(steps=3), JUDGED, "parity.steps differs"),
        (_with_protocol(seed=1), JUDGED, "parity.seed differs"),
        (_with_protocol(buckets=1), {"steps", "gates"}, "parity.buckets differs"),
        (_with_protocol(noise_floor_runs=2), set(), ""),
        (_with_bench(host=HOST.model_copy(update={"cpu": "another"})), {"speed"}, "b: another, 4 cores"),
        (_with_bench(threads=2), {"speed"}, "threads 2"),
        (_with_bench(host=HOST.model_copy(update={"load_average": 3.0})), set(), "a load of 3 on 4 cores"),
        (_with_samples, {"calibration"}, "other samples"),
    ],
)
def test_what_makes_runs_not_comparable_is_found(
    pair: tuple[Path, Path], change: Change, topics: set[str], says: str
) -> None:
    same = read_records(RunDirectory(pair[0]))
    assert find_grounds([same, same], ["a", "b"]) == ()
    grounds = find_grounds([same, change(same)], ["a", "b"])
    assert set().union(*(ground.topics for ground in grounds)) == topics
    assert any(says in ground.sentence for ground in grounds) == bool(says)


def test_other_versions_and_machines_leave_speed_unranked(copies: tuple[Path, Path]) -> None:
    first, second = copies
    save_bench(second, 1.0, label="ort-2")
    document = _compared(first, second)
    assert _row(document, f"speed of {INT8}", "times faster")["best"] == []
    assert _row(document, "size", "int8.onnx, times smaller")["best"] == []
    save_bench(second, 1.9, spread=0.3)
    assert _row(_compared(first, second), f"speed of {INT8}", "times faster")["best"] == [], (
        "within its quartiles"
    )


def test_python_compares_too(pair: tuple[Path, Path]) -> None:
    compared = gd.compare_runs(list(map(str, pair)))
    assert compared.names == ("first run", "second")
    assert [gate.metric for _, gate in compared.failed_gates]
    assert json.loads(json.dumps(compared.document()))["runs"][0]["lacks"] == []
    with pytest.raises(gd.GacqError, match="there is no folder"):
        gd.write_compare_page(compared, str(pair[0].parent / "none" / "a.html"))


def test_it_ends_with_a_sentence_and_each_next_command_once(pair: tuple[Path, Path]) -> None:
    done = invoke(["compare", *map(str, pair)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    following = [line for line in lines if line.startswith("Next")]
    assert len(set(following)) == len(following)
    (sentence,) = (line for line in lines if "ranked figures first run is best in" in line)
    assert lines.index(sentence) == len(lines) - len(following) - 1
