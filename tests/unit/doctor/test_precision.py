"""Does every GPU generation get one row of advice with a source?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.doctor.precision import GENERATIONS, advise, generation


@pytest.mark.parametrize(
    ("capability", "name", "says"),
    [
        ((7, 0), "before Turing", "too old"),
        ((7, 5), "Turing", "INT8 pays; the GPU has no FP8"),
        ((8, 0), "Ampere", "INT8 pays; the GPU has no FP8"),
        ((8, 6), "Ampere", "INT8 pays; the GPU has no FP8"),
        ((8, 7), "Ampere (Orin)", "INT8 pays; the GPU has no FP8"),
        ((8, 9), "Ada", "FP8 as well"),
        ((9, 0), "Hopper", "FP8 as well"),
        ((10, 0), "Blackwell", "gacq-deploy bench"),
        ((11, 0), "Blackwell (Thor)", "gacq-deploy bench"),
        ((12, 0), "Blackwell", "gacq-deploy bench"),
    ],
    ids=str,
)
def test_known_generations(capability: tuple[int, int], name: str, says: str) -> None:
    status, sentence, source = advise(capability)
    assert sentence.startswith(f"{name} ({capability[0]}.{capability[1]}): ")
    assert says in sentence
    assert source
    assert status == ("warning" if capability < (7, 5) else "ok")


def test_rows_stand_in_order() -> None:
    starts = [row.since for row in GENERATIONS]
    assert starts == sorted(set(starts))
    assert all(row.source for row in GENERATIONS)


@given(st.tuples(st.integers(0, 20), st.integers(0, 9)))
def test_every_capability_has_the_last_row_that_has_begun(capability: tuple[int, int]) -> None:
    row = generation(capability)
    assert row.since <= capability
    assert not any(row.since < other.since <= capability for other in GENERATIONS)
