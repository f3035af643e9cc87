"""Which images were drawn beside each other, from which graphs, and do they lie there still?"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gacq_deploy.artifact.artifact import load_model_record
from gacq_deploy.errors import ArtifactError, quoted
from gacq_deploy.export.record import ExportRecord, why_changed
from gacq_deploy.generate.pairs import ImagePairs, make_pairs
from gacq_deploy.generate.sheet import write_comparison
from gacq_deploy.progress import Reporter
from gacq_deploy.recipe.sections import StepPolicySection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import describe_file, verify_file
from gacq_deploy.storage.records import ListedFile, Record, load_sealed_record
from gacq_deploy.storage.sealed import write_sealed


class PictureRecord(Record):
    """What ``comparison.json`` says of ``comparison.png``."""

    schema_: Literal["gacq-deploy/comparison/2"] = Field(default="gacq-deploy/comparison/2", alias="schema")
    graphs: dict[str, str]
    """Exported file -> sha256."""
    step_policy: dict[str, Any] | None
    seeds: tuple[int, ...]
    """In the order in which they are drawn, the worst first."""
    conditions: tuple[str, ...]
    """What each shows: its prompt, its class, or nothing."""
    engine: str
    psnr_db: tuple[float, ...]
    """Of each image, in the same order."""
    picture: ListedFile

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
    hint = f"Run `gacq-deploy quickstart -o {quoted(directory.root)}` again."
    record = load_sealed_record(PictureRecord, directory.comparison_json, what="Comparison record", hint=hint)
    verify_file(directory.comparison_png, record.picture.model_dump(), what="Comparison", hint=hint)
    return record


def ensure_comparison(directory: RunDirectory, export: ExportRecord, report: Reporter) -> None:
    """Draw the same images from the float and the INT8 graph, and their difference, unless they lie there.

    Raises:
        GacqError: as for :func:`~gacq_deploy.generate.pairs.make_pairs`.
    """
    try:
        if load_comparison(directory).why_stale(directory) is None:
            return
    except ArtifactError:
        pass  # absent or damaged: drawn again
    pairs = make_pairs(directory, report=report)
    order = list(pairs.worst_first)
    with directory.writing():
        write_comparison(
            directory.comparison_png,
            pairs.exact[order],
            pairs.quantized[order],
            title=f"{load_model_record(directory.artifact).name}: float and INT8",
            note=f"{pairs.summary}; {_smaller(export, pairs)}",
            captions=[_caption(pairs, i) for i in order],
        )
        record = PictureRecord(
            graphs={name: export.files[name].sha256 for name in pairs.graphs},
            step_policy=_asked(directory.load_recipe().runtime.step_policy),
            seeds=tuple(pairs.seeds[i] for i in order),
            conditions=tuple(pairs.conditions[i] for i in order),
            engine=pairs.engine,
            psnr_db=tuple(pairs.psnr_db[i] for i in order),
            picture=ListedFile(**describe_file(directory.comparison_png)),
        )
        write_sealed(directory.comparison_json, record.model_dump(mode="json", by_alias=True))


def _caption(pairs: ImagePairs, position: int) -> str:
    # a prompt may be cut at its end, the seed may not
    said = (f"seed {pairs.seeds[position]}", pairs.conditions[position])
    return ", ".join(filter(None, said))


def _smaller(export: ExportRecord, pairs: ImagePairs) -> str:
    exact, quantized = (export.bytes_of(name) for name in pairs.graphs)
    return (
        f"{exact / 1e6:.3g} MB in float, {quantized / 1e6:.3g} MB in INT8 ({exact / quantized:.1f}x smaller)"
    )


def _asked(section: StepPolicySection) -> dict[str, Any] | None:
    return section.model_dump(mode="json") if section else None
