"""A copy of the checkout, edited as the documents tell; fresh processes show what it then does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.programs.commands import ROOT, child_environment
from tests.support.programs.mutants import Edit

TABLE = "docs/development.md"
_ROW = re.compile(r"^\| (?P<added>[^|]+) \| (?P<told>.+) \|$", re.MULTILINE)
_PLACE = re.compile(r"`([\w./-]+)`")
_COMMANDS = """
import json, sys
from click.testing import CliRunner
from gacq_deploy_cli.main import cli

done = [CliRunner().invoke(cli, words, prog_name="gacq-deploy") for words in json.loads(sys.argv[1])]
print(json.dumps([(d.exit_code, d.stdout, d.stderr) for d in done]))
"""


def rows_of_the_table() -> dict[str, str]:
    """Return what can be added -> what the table of the documents tells to do for it."""
    text = (ROOT / TABLE).read_text(encoding="utf-8")
    table = text.split("## Adding things", 1)[1].split("\n## ", 1)[0]
    rows = {row["added"]: row["told"] for row in _ROW.finditer(table)}
    del rows["to add"]
    return rows


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """What it printed with ``--json``."""
        return json.loads(self.stdout)


class EditedCheckout:
    """A checkout in ``root`` as it is here, but for what a test does to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.touched: set[str] = set()
        """Files that were edited or written, from the root."""
        root.mkdir()
        for part in ("gacq_deploy", "cli", "recipes"):
            self._bring(part)

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace text that the file has once."""
        path = self._place(file)
        edited = Edit(file=file, old=old, new=new).applied(path.read_text(encoding="utf-8"))
        path.write_text(edited, encoding="utf-8")

    def put_after(self, file: str, anchor: str, text: str) -> None:
        """Put text behind text that the file has once."""
        self.edit(file, anchor, anchor + text)

    def put_before(self, file: str, anchor: str, text: str) -> None:
        """Put text before text that the file has once."""
        self.edit(file, anchor, text + anchor)

    def write(self, file: str, text: str) -> None:
        """Write a new file."""
        path = self._place(file)
        assert not path.exists()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def append(self, file: str, text: str) -> None:
        """Put text at the end of a file."""
        path = self._place(file)
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")

    def untold(self, told: str) -> set[str]:
        """Return the touched files that lie at none of the places that a row names."""
        named = _PLACE.findall(told.replace("this page", f"`{TABLE}`"))
        places = {f"{base}{name}".rstrip("/") for name in named for base in ("", "gacq_deploy/")}
        return {f for f in self.touched if not places & {f, *map(str, Path(f).parents)}}

    def commands(self, *commands: Sequence[str | Path]) -> list[Done]:
        """Run commands one after the other, in one fresh process."""
        words = json.dumps([[str(word) for word in command] for command in commands])
        return [Done(*done) for done in json.loads(self.python(_COMMANDS, words))]

    def python(self, code: str, *arguments: str | Path) -> str:
        """Return what a program prints."""
        done = self._run("-c", code, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_docs(self) -> None:
        """Write the pages that the code tells, as ``make docs`` does."""
        self._bring("docs")
        self.python("from docs.generate import main\nmain()")

    def pytest(self, *selection: str) -> subprocess.CompletedProcess[str]:
        """Run tests of the edited checkout; they go without its conftest.py, which loads PyTorch."""
        for part in ("tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md"):
            self._bring(part)
        options = ("--noconftest", "-q", "-p", "no:cacheprovider", "--basetemp", self.root / "tmp")
        return self._run("-m", "pytest", *options, *selection)

    def _place(self, file: str) -> Path:
        self.touched.add(file)
        self._bring(Path(file).parts[0])
        return self.root / file

    def _bring(self, part: str) -> None:
        source, target = ROOT / part, self.root / part
        if target.exists():
            return
        if not source.is_dir():
            shutil.copy2(source, target)
            return
        # times are kept, so compiled modules stay good; those that a process is writing come and go
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.pyc.*"))

    def _run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=child_environment(root=self.root),
            cwd=self.root, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
