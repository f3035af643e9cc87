"""Does the report page show what the run holds now? The head of a page states a digest of all it was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gacq_deploy import __version__
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import digest_file, digest_json

_SHOWS = re.compile(r'<meta name="gacq-deploy-shows" content="([0-9a-f]{64})">')
_HEAD = 4096
"""Characters in which a page states what it shows."""


def digest_records(run: RunDirectory, chain: Mapping[str, Any], *, images: bool) -> str:
    """Return one digest of everything a page about ``run`` shows; equal ones give equal pages.

    Args:
        run: the directory.
        chain: what was found wrong or absent in it, as plain JSON data.
        images: whether the page has images of its own.
    """
    records = (run.recipe_path, run.onnx_manifest, run.parity_json, run.bench_json, run.sensitivity_json)
    manifests = sorted(run.engines.glob("*/manifest.json"))
    digests = {path.name: digest_file(path) for path in records if path.is_file()}
    engines = {path.parent.name: digest_file(path) for path in manifests}
    # the same wherever one stands: the page's commands name the run as it was named then
    prefix = f"{run.root}/"
    links = [(link["name"], link["status"], link["detail"].replace(prefix, "")) for link in chain["links"]]
    document = {
        "version": __version__,
        "directory": str(run.root.resolve()),
        "images": images,
        "chain": links,
        "records": digests,
        "compiled": engines,
    }
    return digest_json(document)


def shown_by(path: Path) -> str:
    """Return the digest that the head of a page states, "" for none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as page:
            head = page.read(_HEAD)
    except OSError:
        return ""  # there is none yet, and an unreadable one is written anew
    found = _SHOWS.search(head)
    return found[1] if found else ""


def shows_now(run: RunDirectory, chain: Mapping[str, Any]) -> bool:
    """Tell whether ``report.html`` shows what stands in ``run`` now, with images of its own or without."""
    shown = shown_by(run.report_html)
    return any(digest_records(run, chain, images=images) == shown for images in (True, False))
