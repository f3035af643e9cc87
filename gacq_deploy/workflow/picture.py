"""Which images were drawn beside each other, from which graphs, and do they lie there still?"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gacq_deploy.engines.catalogue import CPU, FLOAT, FLOAT_ENGINE, REFERENCE
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import ExportRecord, why_changed
from gacq_deploy.generate.grid import write_comparison
from gacq_deploy.generate.request import ImageRequest
from gacq_deploy.generate.sampled import make_sampled_images
from gacq_deploy.metrics.images import psnr
from gacq_deploy.progress import Reporter
from gacq_deploy.recipe.sections import StepPolicySection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import describe_file, verify_file
from gacq_deploy.storage.files import read_json, write_json
from gacq_deploy.storage.lock import lock_directory

IMAGES, COLUMNS = 20, 5


class PictureRecord(BaseModel):
    """What ``comparison.json`` says of ``comparison.png``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["gacq-deploy/comparison/1"] = Field(default="gacq-deploy/comparison/1", alias="schema")
    graphs: dict[str, str]
    """Exported file -> sha256."""
    step_policy: dict[str, Any] | None
    seeds: tuple[int, ...]
    engine: str
    mean_psnr_db: float
    picture: dict[str, Any]

    def why_stale(self, directory: RunDirectory) -> str | None:
        """Return why the picture is not of what the run holds now; None: it is."""
        changed = why_changed(directory, {"files": self.graphs})
        if changed is None and self.step_policy != _asked(directory.load_recipe().runtime.step_policy):
            return f"{directory.recipe_path} asks for another runtime.step_policy"
        return changed


def load_comparison(directory: RunDirectory) -> PictureRecord:
    """Read the record, and check the picture against it.

    Raises:
        ArtifactError: missing, altered, or of another form.
    """
    hint = f"Run `gacq-deploy quickstart -o {directory.root}` again."
    document = read_json(directory.comparison_json, what="Comparison record", hint=hint)
    try:
        record = PictureRecord.model_validate(document)
    except ValidationError as error:
        raise ArtifactError(f"{directory.comparison_json} is not a comparison record.", hint) from error
    verify_file(directory.comparison_png, record.picture, what="Comparison", hint=hint)
    return record


def ensure_comparison(directory: RunDirectory, export: ExportRecord, report: Reporter) -> None:
    """Draw the same images from the float and the INT8 graph, and their difference, unless they lie there.

    Raises:
        GacqError: as for :func:`~gacq_deploy.generate.sampled.make_sampled_images`.
    """
    try:
        if load_comparison(directory).why_stale(directory) is None:
            return
    except ArtifactError:
        pass  # absent or damaged: drawn again
    exact, quantized = (
        make_sampled_images(directory, ImageRequest(count=IMAGES, engine=engine, allow_failed=True), report)
        for engine in (FLOAT_ENGINE, REFERENCE)
    )
    with lock_directory(directory.root):
        write_comparison(directory.comparison_png, exact.images, quantized.images, columns=COLUMNS)
        record = PictureRecord(
            graphs={name: export.files[name].sha256 for name in (FLOAT, CPU)},
            step_policy=_asked(directory.load_recipe().runtime.step_policy),
            seeds=quantized.seeds,
            engine=quantized.engine,
            mean_psnr_db=float(np.mean(psnr(exact.images, quantized.images))),
            picture=describe_file(directory.comparison_png),
        )
        write_json(directory.comparison_json, record.model_dump(mode="json", by_alias=True))


def _asked(section: StepPolicySection) -> dict[str, Any] | None:
    return section.model_dump(mode="json") if section else None
