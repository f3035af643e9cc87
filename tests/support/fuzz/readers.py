"""Which readers take what others wrote? One table, for `make test` and for `make soak`."""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.fuzz.graph_rows import GRAPHS
from tests.support.fuzz.lora_row import LORA
from tests.support.fuzz.model_rows import MODEL_FILES
from tests.support.fuzz.page_row import PAGE
from tests.support.fuzz.reader import FuzzedReader
from tests.support.fuzz.record_rows import RECORDS
from tests.support.fuzz.text_rows import TEXTS
from tests.support.fuzz.thresholds_row import THRESHOLDS
from tests.support.fuzz.weight_rows import WEIGHTS

READERS: Mapping[str, FuzzedReader] = {
    **TEXTS,
    **THRESHOLDS,
    **RECORDS,
    "report-page": PAGE,
    **MODEL_FILES,
    **LORA,
    **WEIGHTS,
    **GRAPHS,
}
