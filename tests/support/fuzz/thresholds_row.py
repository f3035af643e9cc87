"""The reader of ``parity --rejudge FILE``: thresholds that a user writes, or a recipe that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gacq_deploy.errors import UsageError
from gacq_deploy.parity.stage import rejudge
from gacq_deploy.recipe.load import builtin_recipes, load_recipe
from gacq_deploy.storage.yaml_documents import encode_yaml
from gacq_deploy_cli.parity import _read_thresholds
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.fuzz.run_of_records import run_of_records
from tests.support.fuzz.text_rows import BASE, restructure_yaml


def _open(folder: Path) -> Opened:
    run = run_of_records(folder)
    path = folder / "thresholds.yaml"
    section = load_recipe(BASE).document()["parity"]
    texts = (
        b"budget: {image_psnr_db: 28}\n",
        b"{local_equal_share: 0.9, budget: {eps_cosine: 0.5, eps_sqnr_db: 1.5}}\n",
        encode_yaml(section).encode(),
        builtin_recipes()[BASE].read_bytes(),
    )

    def read(tried: Input) -> None:
        path.write_bytes(tried.data)
        rejudge(run, _read_thresholds(path)).to_text()

    return Opened(tuple(Input("yaml", text) for text in texts), read)


THRESHOLDS: Mapping[str, FuzzedReader] = {
    "thresholds": FuzzedReader(_open, restructure_yaml, UsageError, tries=100)
}
