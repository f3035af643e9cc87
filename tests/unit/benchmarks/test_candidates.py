from pathlib import Path

from benchmarks.quality.candidates import Workshop
from benchmarks.quality.rows import Row
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.samples.calibration_set import load_samples


def test_rows_of_a_model_and_seed_start_from_the_same_samples(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, ("samples.trajectories=2", "samples.steps=2"))
    rows = [Row("digits8", "w4a8", "uniform", "gac"), Row("digits8", "w8a8", "nearest-mse")]
    denoiser = load_float_denoiser(shop.recipe(rows[0]).model)
    found = {shop.samples(shop.recipe(row), denoiser) for row in rows}
    assert len(found) == 1
    directory, sha256 = found.pop()
    assert len(load_samples(directory.samples_path, sha256=sha256)) == 4
