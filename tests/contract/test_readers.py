"""Whatever stands in a file of others, its reader takes it or says what is wrong: one contract, a row a reader.

Each healthy file is the writer's own. What is changed in it is seeded, and the work on it counted; `make soak` goes on
with other seeds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from gacq_deploy.errors import ArtifactError, RecipeError, UsageError
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.samples.prompts import read_prompts
from gacq_deploy.storage.digests import canonical_json
from tests.support.fuzz.inputs import CORPUS, Input, kept_inputs
from tests.support.fuzz.reader import FuzzedReader, Opened, Outcome, changed_input, try_input
from tests.support.fuzz.readers import READERS
from tests.support.fuzz.record_rows import FILES, RECORDS

TEXTS: tuple[bytes, ...] = (
    b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}',
    b'{"a": "\\ud800"}', b'{"\\udc00": 1}', b'{"a": 1, "a": 2}', b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": 36893488147419103232}', b"[" * 100_000, b'{"a":' * 300 + b"1" + b"}" * 300, b'{"a": "\x00"}',
)  # fmt: skip
"""No document of ours, whatever the reader."""


@pytest.fixture(scope="module", params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reader(name: str) -> FuzzedReader:
    return READERS[name]


@pytest.fixture(scope="module")
def opened(reader: FuzzedReader, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return reader.open(tmp_path_factory.mktemp("opened"))


def test_what_its_writer_left_is_read(reader: FuzzedReader, opened: Opened) -> None:
    for healthy in opened.healthy:
        assert try_input(reader, opened, healthy) == Outcome(), healthy.kind


def test_what_once_failed_is_taken_or_refused(name: str, reader: FuzzedReader, opened: Opened) -> None:
    for kept in kept_inputs(name):
        assert try_input(reader, opened, kept).bug is None, kept.name


def test_what_is_changed_is_taken_or_refused(name: str, reader: FuzzedReader, opened: Opened) -> None:
    tried: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for seed in range(reader.tries):
        changed, sort = changed_input(reader, opened.healthy, f"{name} {seed}")
        outcome = try_input(reader, opened, changed)
        if outcome.bug is not None:
            pytest.fail(f"seed {seed}, {changed.kind}, {sort}: {changed.data[:500]!r}: {outcome.bug!r}")
        tried[sort] += 1
        refused[sort] += outcome.refusal is not None
    if reader.refuses_most:
        assert all(refused[sort] > tried[sort] // 5 for sort in tried), (tried, refused)


def test_every_kept_input_is_of_a_reader_and_named_by_what_it_holds() -> None:
    for folder in CORPUS.glob("*"):
        assert {file.name for file in folder.iterdir()} == {kept.name for kept in kept_inputs(folder.name)}
        assert folder.name in READERS


def _raise_another(tried: Input) -> None:
    raise KeyError(tried.kind)


def _never_end(tried: Input) -> None:
    for number in iter(int, 1):
        number.bit_length()


def _give_no_remedy(tried: Input) -> None:
    raise ArtifactError(f"{tried.kind} is damaged.")


def _refuse_as_another(tried: Input) -> None:
    raise UsageError(f"{tried.kind} is damaged.", "Mend it.")


@pytest.mark.parametrize("read", [_raise_another, _never_end, _give_no_remedy, _refuse_as_another])
def test_what_no_reader_may_do_is_seen(read: Callable[[Input], object]) -> None:
    reader = replace(READERS["bench"], most_calls=1000)
    assert try_input(reader, Opened((), read), Input("json", b"{}")).bug is not None


@pytest.mark.parametrize("record", RECORDS)
def test_no_document_is_refused_with_file_and_remedy(record: str, tmp_path: Path) -> None:
    reader, random = RECORDS[record], Random(record)
    opened = reader.open(tmp_path)
    (healthy,) = (one.data for one in opened.healthy)
    assert healthy == canonical_json(json.loads(healthy)), "the seal is of the canonical form"
    cut = [healthy[: random.randrange(len(healthy) - 2)] for _ in range(5)]
    noise = [random.randbytes(random.randrange(1, 200)) for _ in range(5)]
    for data in (*TEXTS, *cut, *noise):
        refusal = try_input(reader, opened, Input("json", data)).refusal
        assert type(refusal) is ArtifactError
        assert Path(FILES[record].file).name in refusal.message
        assert refusal.hint


YAML_TEXTS = (
    b"", b"\xe9t\xe9: latin-1", b"\x00\x01", b"&a [*a]", b"a: &a {<<: *a}", b"? [a]\n: b", b"k: " + b"[" * 100_000,
    b"samples: {steps: " + b"9" * 5000 + b"}", b"parity: {budget: {eps_cosine: .inf}}", b"name: 2024-13-45",
    b"samples: {steps: 0x_}", b"name: !!python/object:os.system x", b'name: "\\ud800"',
    b"parity: {budget: {eps_cosine: '1e999'}}", b"export: {targets: !!set {a, b}}", b"1: 2",
)  # fmt: skip


@pytest.mark.parametrize("text", YAML_TEXTS, ids=range(len(YAML_TEXTS)))
def test_a_recipe_that_is_none_is_the_users_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="--set"):
        load_recipe("fashion-w8a8", [f"parity={text.decode('latin-1') or '['}"])


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_prompts_that_are_none_are_the_users_error(tmp_path: Path, text: bytes) -> None:
    for suffix in ("json", "jsonl"):
        file = tmp_path / f"prompts.{suffix}"
        file.write_bytes(text)
        with pytest.raises(UsageError, match="prompts"):
            read_prompts(file)
