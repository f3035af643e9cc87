"""How does a comparison become one file that opens anywhere? The report's style and policy, and no script."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from pathlib import Path

from markupsafe import Markup

from gacq_deploy import __version__
from gacq_deploy.compare.stage import RunComparison
from gacq_deploy.report.self_contained import TEMPLATES, content_policy, page_environment
from gacq_deploy.run_directory import refuse_own_file
from gacq_deploy.storage.files import write_bytes
from gacq_deploy.storage.outputs import require_output

_OWN = Path(__file__).parent / "template"
_TONES = {"passed": "ok", "FAILED": "bad", "stale": "bad"}


@dataclass(frozen=True)
class _Picture:
    name: str
    uri: str
    caption: str


def write_compare_page(compared: RunComparison, file: str | PathLike[str]) -> int:
    """Write a comparison as one HTML page, whole or not at all; return its bytes.

    Raises:
        ResourceError: the disk is full.
        UsageError: the page cannot be written there, or its folder is not there.
    """
    path = Path(file)
    require_output(path, ".html")
    refuse_own_file(path)
    page = render_comparison(compared).encode()
    write_bytes(path, page)
    return len(page)


def render_comparison(compared: RunComparison) -> str:
    """Return the page. Whatever comes from a run is escaped; the page's own policy forbids every request."""
    sheets = (TEMPLATES / "page.css", _OWN / "compare.css")
    style = "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
    named = list(zip(compared.names, compared.records, strict=True))
    return (
        page_environment(_OWN)
        .get_template("compare.html.j2")
        .render(
            policy=content_policy(style, ""),
            style=Markup(style),
            version=__version__,
            compared=compared,
            lacks=[(name, lack) for name, record in named for lack in record.lacks],
            sections=[
                (name, list(rows)) for name, rows in groupby(compared.rows, lambda row: row.key.section)
            ],
            pictures=list(_pictures(compared)),
            current={name: record.is_current("parity") for name, record in named},
            tones=_TONES,
        )
    )


def _pictures(compared: RunComparison) -> Iterator[_Picture]:
    for name, record in zip(compared.names, compared.records, strict=True):
        picture = record.picture
        if picture is not None and record.is_current("comparison"):
            png = base64.b64encode(record.run.comparison_png.read_bytes()).decode("ascii")
            yield _Picture(
                name=name,
                uri=f"data:image/png;base64,{png}",
                caption=f"{len(picture.seeds)} images, float and INT8 in {picture.engine}, and their difference.",
            )
