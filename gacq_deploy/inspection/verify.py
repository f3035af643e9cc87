"""Is every file of a run directory what its manifest says, and made from the one before it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gacq_deploy.artifact.artifact import ARTIFACT_FILES, load_artifact
from gacq_deploy.artifact.samples_record import load_samples_record
from gacq_deploy.bench import load_bench
from gacq_deploy.build_trt.manifest import engines_of
from gacq_deploy.calibration.checkpoint import load_checkpoint
from gacq_deploy.errors import RESTORE, ArtifactError, GacqError, quoted
from gacq_deploy.export.record import load_export
from gacq_deploy.inspection.commands import command_for
from gacq_deploy.inspection.others import checkpoints_of, other_files
from gacq_deploy.inspection.page import shows_now
from gacq_deploy.origin.check import check_origin, trusted_keys
from gacq_deploy.origin.signature import load_signature, require_signed_files
from gacq_deploy.parity.report import load_report
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity import load_sensitivity
from gacq_deploy.storage.digests import digest_file, verify_file
from gacq_deploy.storage.documents import shown
from gacq_deploy.storage.sealed import require_current
from gacq_deploy.workflow.picture import load_comparison

if TYPE_CHECKING:
    from gacq_deploy.origin.keys import TrustedKeys

LinkStatus = Literal["ok", "warning", "absent", "fail", "unchecked"]
"""``warning``: the file is what was written, and says or shows something that one has to know. ``unchecked``: no record
says what it should be."""


@dataclass(frozen=True)
class Link:
    """One link of the chain: what was checked, and the digest that the next one builds on."""

    name: str
    status: LinkStatus
    path: str
    detail: str
    hint: str = ""

    @property
    def is_intact(self) -> bool:
        """Whether the file is there, and what was written."""
        return self.status in ("ok", "warning")


class _Remark(NamedTuple):
    """What is said of an intact file that does not say that all is well."""

    detail: str
    hint: str


@dataclass(frozen=True)
class VerifyReport:
    """The whole chain; true when nothing in it is stale, corrupt or altered. Absent is not wrong."""

    directory: str
    links: tuple[Link, ...]

    def __bool__(self) -> bool:
        return all(link.status != "fail" for link in self.links)

    def document(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "directory": self.directory,
            "passed": bool(self),
            "links": [asdict(link) for link in self.links],
        }


def verify_run(directory: RunDirectory, keys: Path | None = None) -> VerifyReport:
    """Check all that :func:`verify_records` does, the page that shows it, and the signature.

    Every file that no record names is listed with the reason.

    Args:
        directory: the run.
        keys: PEM file of public ed25519 keys; a run that none of them signed then fails.

    Raises:
        ArtifactError: ``directory`` is no run directory at all.
        UsageError: the file of keys cannot be read as such, or lies in the run.
        BackendUnavailable: there are keys, and `cryptography` is missing.
    """
    trusted = None if keys is None else trusted_keys(keys, directory)
    chain = verify_records(directory)
    page = _check("report", directory.report_html, lambda: _page(directory, chain))
    signature = _signature(directory, trusted)
    return VerifyReport(chain.directory, (*chain.links, page, signature, *_others(directory)))


def verify_records(directory: RunDirectory) -> VerifyReport:
    """Check recipe, samples, finished steps, artifact, graphs and records of a run, in that order.

    A fault does not stop the check: every link is reported.

    Raises:
        ArtifactError: ``directory`` is no run directory at all.
    """
    # an artifact without the recipe beside it is a run that lost something, which the first link says
    if not directory.artifact.is_dir():
        directory.require()
    return VerifyReport(str(directory.root), tuple(_links(directory)))


def _others(run: RunDirectory) -> Iterator[Link]:
    try:
        for path, reason in other_files(run):
            yield Link("other file", "unchecked", str(path), f"{path.relative_to(run.root)}: {reason}")
    except OSError as error:
        said = f"{error.filename or run.root} cannot be read: {error.strerror}."
        yield Link("other files", "fail", str(run.root), said, "Mend its permissions, or the disk.")


def _links(run: RunDirectory) -> Iterator[Link]:
    yield _check("recipe", run.recipe_path, lambda: f"digest {run.load_recipe().digest[:12]}", run.artifact)
    blocks, polish = checkpoints_of(run)
    yield _check("samples", run.samples_record_path, lambda: _samples(run), run.samples_path)
    yield _check("finished steps", blocks, lambda: _checkpoint(run), polish)
    manifest = run.artifact / "manifest.json"
    files = [run.artifact / name for name in ARTIFACT_FILES]
    yield _check("artifact", manifest, lambda: _artifact(run), *files, run.onnx_manifest)
    yield _check("graphs", run.onnx_manifest, lambda: _graphs(run), run.int8_onnx, run.cpu_onnx)
    yield _check("engines", run.engines, lambda: _engines(run))
    yield _check("parity", run.parity_json, lambda: _parity(run))
    yield _check("bench", run.bench_json, lambda: _bench(run))
    yield _check("sensitivity", run.sensitivity_json, lambda: _sensitivity(run))
    yield _check("comparison", run.comparison_json, lambda: _comparison(run), run.comparison_png)


def _check(name: str, path: Path, work: Callable[[], str | _Remark], *dependents: Path) -> Link:
    """Run one check; a record that was never made is absent, unless what it vouches for is there."""
    if not path.exists():
        orphans = [str(d) for d in dependents if d.exists()]
        if not orphans:
            return Link(name, "absent", str(path), "not made yet")
        return Link(
            name,
            "fail",
            str(path),
            f"{path} is missing, so nothing vouches for {', '.join(orphans)}.",
            "Run the command that makes it again.",
        )
    return _judge(name, path, work)


def _judge(name: str, path: Path, work: Callable[[], str | _Remark]) -> Link:
    try:
        found = work()
    except GacqError as error:
        return Link(name, "fail", str(path), error.message, error.hint)
    except OSError as error:
        said = f"{error.filename or path} cannot be read: {error.strerror}."
        return Link(name, "fail", str(path), said, "Mend its permissions, or the disk.")
    if isinstance(found, _Remark):
        return Link(name, "warning", str(path), found.detail, found.hint)
    return Link(name, "ok", str(path), found)


def _samples(run: RunDirectory) -> str:
    recorded = load_samples_record(run.samples_record_path).sha256
    if not run.samples_path.is_file():
        raise ArtifactError(f"Calibration samples are missing: {run.samples_path}", RESTORE)
    actual = digest_file(run.samples_path)
    if actual != recorded:
        raise ArtifactError(
            f"Calibration samples {run.samples_path} were altered: sha256 {actual[:12]}, recorded was "
            f"{shown(recorded[:12])}.",
            RESTORE,
        )
    return f"sha256 {actual[:12]}"


def _checkpoint(run: RunDirectory) -> str:
    count = 0
    for path in filter(Path.is_file, checkpoints_of(run)):
        steps = load_checkpoint(path).steps
        count += len(steps)
        for name, entry in steps.items():
            step = path.with_name(entry.file)
            verify_file(step, entry.model_dump(), what=f"Finished step '{name}'", hint=RESTORE)
    return "1 step" if count == 1 else f"{count} steps"


def _artifact(run: RunDirectory) -> str:
    artifact = load_artifact(run.artifact)
    samples = digest_file(run.samples_path) if run.samples_path.is_file() else None
    hint = f"Run `{command_for('artifact', run)}` again: it goes on where the run stands."
    require_current(run.artifact, artifact.why_stale(run.load_recipe().decisive(), samples), hint)
    retrained = f", {len(artifact.parameters)} retrained parameters" if artifact.parameters else ""
    return f"digest {artifact.manifest_digest[:12]}, {len(artifact.plan)} tensors{retrained}"


def _graphs(run: RunDirectory) -> str:
    record = load_export(run)
    return ", ".join(f"{name} {record.files[name].sha256[:12]}" for name in record.graphs)


def _engines(run: RunDirectory) -> str:
    export = load_export(run)
    found = list(engines_of(run))
    for folder, record in found:
        hint = f"Delete it; `{command_for('engines', run)}` makes a new one."
        require_current(folder, record.why_stale(export), hint)
    return ", ".join(f"{folder.name} ({r.label}, {r.inputs.graph})" for folder, r in found) or "none"


def _parity(run: RunDirectory) -> str | _Remark:
    report = load_report(run.parity_json)
    hint = f"Run `{command_for('parity', run)}` again."
    require_current(run.parity_json, report.why_stale(run), hint)
    if report:
        return "passed"
    failed, count = len(report.failed_gates), sum(len(c.thresholds) for c in report.comparisons)
    said = f"did not pass: {failed} of {count} gates failed."
    return _Remark(said, f"`{command_for('report', run)}` shows them, and what helps.")


def _page(run: RunDirectory, chain: VerifyReport) -> str | _Remark:
    if shows_now(run, chain.document()):
        return "shows what stands in this run"
    said = "shows an earlier state of this run, or was written at another place or by another version."
    return _Remark(said, f"`{command_for('report', run)}` writes it anew.")


def _signature(run: RunDirectory, trusted: TrustedKeys | None) -> Link:
    if trusted is None:
        return _check("signature", run.signature_json, lambda: _unasked_signature(run))
    return _judge(
        "signature",
        run.signature_json,
        lambda: f"of key {check_origin(run, trusted).key}, which {trusted.path} trusts",
    )


def _unasked_signature(run: RunDirectory) -> str:
    signature = load_signature(run)
    require_signed_files(run, signature)
    return f"names these files, and key {signature.key}; whether that signed them, only --trusted-keys checks"


def _bench(run: RunDirectory) -> str:
    hint = f"Run `{command_for('bench', run)}` again."
    require_current(run.bench_json, load_bench(run.bench_json).why_stale(run), hint)
    return "measured on these graphs"


def _sensitivity(run: RunDirectory) -> str:
    hint = f"Run `{command_for('sensitivity', run)}` again."
    require_current(run.sensitivity_json, load_sensitivity(run).why_stale(run), hint)
    return "measured on this artifact"


def _comparison(run: RunDirectory) -> str:
    hint = f"Run `gacq-deploy quickstart -o {quoted(run.root)}` again."
    require_current(run.comparison_json, load_comparison(run).why_stale(run), hint)
    return "drawn from these graphs"
