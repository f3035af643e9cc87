"""Tables in any width: every number and word is whole, and none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy_cli.table import Table, folded, output_width

WIDTHS = (20, 40, 80, 120, 200)
SITE = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0:input"
GATES = Table(
    "parity",
    ["verdict", "evidence", "reference", "candidate", "metric", "value", "bound"],
    [
        ("ok", "budget", "float.onnx@ort-cpu", "int8.onnx@ort-cpu", "eps_sqnr_db", "24.3119", ">= 20"),
        ("FAIL", "error", "torch", "int8.cpu.onnx@openvino", "difference_db", "1.60518e-06", "<= 0.5"),
    ],
)


def words_of(text: str) -> set[str]:
    return set(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_and_no_word_is_broken(width: int) -> None:
    shown = GATES.text(width)
    assert {
        "24.3119",
        "1.60518e-06",
        "int8.cpu.onnx@openvino",
        "float.onnx@ort-cpu",
        "eps_sqnr_db",
    } <= words_of(shown)
    assert all(len(line) <= max(width, len("    int8.cpu.onnx@openvino")) for line in shown.splitlines())


def test_what_fits_is_a_table_and_what_does_not_is_label_and_value() -> None:
    wide, narrow = GATES.text(200).splitlines(), GATES.text(40).splitlines()
    assert any("verdict" in line and "bound" in line for line in wide)
    assert "  verdict    FAIL" in narrow
    assert "  candidate  int8.cpu.onnx@openvino" in narrow


def test_one_row_is_label_and_value_line_by_line() -> None:
    table = Table(
        "INT8", ["engine", "speed x, batch 1", "image PSNR dB", "empty"], [("ort-cpu", "1.92", "46.1", "")]
    )
    assert table.text(80).splitlines() == [
        "",
        "INT8",
        "  engine            ort-cpu",
        "  speed x, batch 1  1.92",
        "  image PSNR dB     46.1",
    ]


def test_prose_is_folded_between_words_and_the_rest_of_the_row_is_not() -> None:
    remedy = "Leave the layer float in a rule of its own, or give it more bits than it has in the recipe now."
    shown = Table("lint", ["node", "remedy"], [("conv_17", remedy), ("conv_18", "none")]).text(60)
    assert words_of(remedy) <= words_of(shown)
    assert max(map(len, shown.splitlines())) <= 60
    assert sum("conv_17" in line for line in shown.splitlines()) == 1


def test_without_a_width_every_cell_stands_on_one_line() -> None:
    assert f"{SITE}   {'x' * 300}" in Table("t", ["site", "other"], [(SITE, "x" * 300), ("a", "b")]).text(
        None
    )


def test_cells_are_no_markup() -> None:
    assert "[red]a[/red]" in Table("[b]", ["name", "value"], [("[red]a[/red]", "1"), ("x", "2")]).text(80)


CELLS = st.text(st.sampled_from("ab .:1[]-é"), max_size=40)


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.tuples(
            st.lists(CELLS.filter(str.strip), min_size=n, max_size=n),
            st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=4),
        )
    ),
    st.integers(12, 200),
)
def test_every_word_is_whole_in_every_width(content: tuple[list[str], list[list[str]]], width: int) -> None:
    columns, rows = content
    shown = Table("title", columns, rows).text(width)
    for row in rows:
        for cell in row:
            assert words_of(cell) <= words_of(shown)
    longest = max((len(word) for word in shown.split()), default=0)
    assert all(len(line) <= max(width, longest + 6) for line in shown.splitlines())


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_of_prose_are_folded_between_words(width: int) -> None:
    text = f"The layer {SITE} reads a tensor whose scale is 1.60518e-06.\nIt stays float."
    assert folded(text, width).split() == text.split()
    assert all(len(line) <= max(width, len(SITE)) for line in folded(text, width).splitlines())
    assert folded(text, None) == text


def test_columns_is_obeyed_by_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert output_width() == 80
    for nonsense in ("", "0", "wide"):
        monkeypatch.setenv("COLUMNS", nonsense)
        assert output_width() is None


LAYERS = Table(
    "20 layers",
    ["layer", "share of the error", "quantized alone", "its weight", "its input", "gain if left float"],
    [
        (f"up_blocks.{i}.resnets.1.conv1", f"{i}.5%", "33.3 29.3 30.1 32.1 33.1", f"4{i}.4", "", f"+0.{i}1")
        for i in range(20)
    ],
)


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_that_do_not_fit_go_below_in_a_table_of_their_own(width: int) -> None:
    lines = LAYERS.text(width).splitlines()
    once = width >= 120
    assert sum("up_blocks.7.resnets" in line for line in lines) == 1 if once or width < 60 else 2
    assert all(len(line) <= max(width, len("up_blocks.17.resnets.1.conv1") + 4) for line in lines)
    shown = words_of("\n".join(lines))
    for i in range(20):
        assert {f"up_blocks.{i}.resnets.1.conv1", f"{i}.5%", f"4{i}.4", f"+0.{i}1"} <= shown
    assert len(lines) < 60 or width < 60


def test_rows_that_the_first_column_does_not_name_stay_together() -> None:
    rows = [(("ok", "FAIL")[i % 2], f"up_blocks.{i}.resnets.0.conv1:input", "x" * 40) for i in range(8)]
    shown = Table("t", ["verdict", "site", "value"], rows).text(60).splitlines()
    assert shown.count("  verdict  FAIL") == 4


def test_commands_between_backticks_stay_on_one_line() -> None:
    command = "`gacq-deploy sensitivity 'my runs/mine' --min-sqnr 45`"
    assert command in folded(f"The model did not pass: run {command}, which ranks the layers.", 40)
