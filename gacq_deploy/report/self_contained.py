"""How does a page hold all it needs, and ask nothing of the network? One environment, one policy for every page."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "template"
"""Where the report's template, style and script lie."""


def page_environment(folder: Path) -> Environment:
    """Return what fills the templates of a folder: every value is escaped, a missing one is an error."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["commands"] = mark_commands
    environment.filters["dots"] = break_at_dots
    return environment


def mark_commands(words: str) -> Markup:
    """Return escaped text in which what stands between backticks is marked as code."""
    parts = words.split("`")
    if len(parts) % 2 == 0:
        return escape(words)
    marked = Markup("")
    for position, part in enumerate(parts):
        is_command = position % 2 == 1
        marked += Markup("<code>{}</code>").format(part) if is_command else escape(part)
    return marked


def break_at_dots(name: str) -> Markup:
    """Return an escaped name that may go to the next line behind a dot, slash or colon, and nowhere else."""
    pieces = re.findall(r"[^./:]*[./:]|[^./:]+", name)
    return Markup("<wbr>").join(pieces)


def content_policy(style: str, script: str) -> str:
    """Return a content security policy under which only our own script and style run, and nothing is fetched."""
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (script, style)]
    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
