"""Does the report page show what the run holds now? The head of a page states a digest of all it was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gacq_deploy import __version__
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import digest_file, digest_json

_SHOWS = re.compile(r'<meta name="gacq-deploy-shows" content="([0-9a-f]{64} [0-9a-f]{64})">')
_HEAD = 4096
"""Characters in which a page states what it shows."""


def digest_page(run: RunDirectory, chain: Mapping[str, Any], *, images: bool) -> str:
    """Return what the head of a page about ``run`` states: a digest of the records, and one of everything it shows.

    Equal ones give equal pages.

    Args:
        run: the directory.
        chain: what was found wrong or absent in it, as plain JSON data.
        images: whether the page has images of its own.
    """
    return _stated(run, chain, _digest_records(run), images=images)


def shown_by(path: Path) -> str:
    """Return what the head of a page states, "" for none."""
    if not path.is_file():
        return ""  # a fifo would be waited for
    try:
        with path.open(encoding="utf-8", errors="replace") as page:
            head = page.read(_HEAD)
    except OSError:
        return ""  # there is none yet, and an unreadable one is written anew
    found = _SHOWS.search(head)
    return found[1] if found else ""


def shows_now(run: RunDirectory, chain: Mapping[str, Any]) -> bool:
    """Tell whether ``report.html`` shows what stands in ``run`` now, with images of its own or without."""
    shown, records = shown_by(run.report_html), _digest_records(run)
    return any(_stated(run, chain, records, images=images) == shown for images in (True, False))


def why_of_other_records(run: RunDirectory) -> str | None:
    """Return why ``report.html`` is not of the records in ``run`` now; None: it is. No large file is read."""
    if shown_by(run.report_html).partition(" ")[0] == _digest_records(run):
        return None
    return "it shows an earlier state of this run"


def _stated(run: RunDirectory, chain: Mapping[str, Any], records: str, *, images: bool) -> str:
    # the same wherever one stands: the page's commands name the run as it was named then
    prefix = f"{run.root}/"
    document = {
        "version": __version__,
        "directory": str(run.root.resolve()),
        "images": images,
        "chain": [
            (link["name"], link["status"], link["detail"].replace(prefix, "")) for link in chain["links"]
        ],
        "records": records,
    }
    return f"{records} {digest_json(document)}"


def _digest_records(run: RunDirectory) -> str:
    """Return one digest of the records that a page is made from; those of engines, and their order, are among them."""
    own = (run.recipe_path, run.onnx_manifest, run.parity_json, run.bench_json, run.sensitivity_json)
    engines = (*run.engines.glob("*.json"), *run.engines.glob("*/manifest.json"))
    files = [path for path in (*own, *engines) if path.is_file()]
    return digest_json({path.relative_to(run.root).as_posix(): digest_file(path) for path in files})
