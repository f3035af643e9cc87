"""Are the documents true? Commands in them parse, make targets exist, and the tree names no machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from gacq_deploy_cli.main import cli
from tests.support.programs.commands import invoke
from tests.support.programs.keys import write_keys

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "*.md", "docs/*.md", ".github/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if pattern == "README.md" or path.name != "README.md"
)
"""The README first: what it does to a run comes before what the pages do."""
BLOCK = re.compile(r"```(?:console|sh|bash)\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# in pieces, so that this file does not name them itself
HOSTS = (
    "pypi." + "org",
    "pythonhosted" + ".org",
    "deb.debian" + ".org",
    "npmjs" + ".org",
    "download.pytorch" + ".org",
)
FORBIDDEN = re.compile("|".join((r"(?<![\w.{}])/(?:work|root|home)/", *map(re.escape, HOSTS))))
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".jsonl", ".cfg", ".sh", ""}


def _lines(document: str) -> Iterator[str]:
    for block in BLOCK.findall((ROOT / document).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").split("  #")[0].strip()
            if command and not command.startswith("#"):
                yield command


def _commands(program: str) -> list[str]:
    return [line for document in DOCUMENTS for line in _lines(document) if line.split()[0] == program]


def _parse(group: click.Group, arguments: list[str], parent: click.Context) -> None:
    name, *rest = arguments
    command = group.get_command(parent, name)
    assert command is not None, f"there is no command {name}"
    if isinstance(command, click.Group):
        _parse(command, rest, click.Context(command, parent=parent))
    else:
        command.make_context(name, rest, parent=parent)


@pytest.mark.parametrize("line", sorted(set(_commands("gacq-deploy"))), ids=str)
def test_documented_commands_parse(line: str) -> None:
    arguments = shlex.split(line)[1:]
    if set(arguments) & {"--help", "--version"}:
        return
    _parse(cli, arguments, click.Context(cli))


INLINE = re.compile(r"`(gacq-deploy [^`]+)`")
PLACEHOLDERS = ("...", "COMMAND")


def _mentioned() -> list[str]:
    """Return commands that stand in running text, or behind another program's own words."""
    found = [line for document in DOCUMENTS for line in INLINE.findall((ROOT / document).read_text("utf-8"))]
    for document in DOCUMENTS:
        found += [
            f"gacq-deploy {line.partition(' gacq-deploy ')[2]}"
            for line in _lines(document)
            if " gacq-deploy " in line
        ]
    return [line for line in found if not any(word in line for word in PLACEHOLDERS)]


@pytest.mark.parametrize("line", sorted(set(_mentioned())), ids=str)
def test_mentioned_commands_parse(line: str) -> None:
    _, *arguments = shlex.split(" ".join(line.split()))
    if len(arguments) == 1:  # its name alone
        assert arguments[0] in cli.commands
    else:
        _parse(cli, arguments, click.Context(cli))


def _calibrations() -> list[str]:
    lines = [*_commands("gacq-deploy"), *_mentioned()]
    return sorted({line for line in lines if line.split()[1] == "calibrate" and " -r " in line})


@pytest.mark.parametrize("line", _calibrations(), ids=str)
def test_documented_recipes_and_overrides_load(line: str) -> None:
    from gacq_deploy.recipe.load import load_recipe

    context = cli.commands["calibrate"].make_context("calibrate", shlex.split(line)[2:])
    recipe, preset = context.params["recipe"], context.params["preset"]
    if "/" not in recipe:  # a run's own one is not there
        load_recipe(recipe, context.params["overrides"], preset=preset)


def test_python_in_the_documents_names_what_there_is() -> None:
    import gacq_deploy as gd

    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        assert set(re.findall(r"\bgd\.(\w+)", text)) <= set(dir(gd)), document
        if document != "docs/python-api.md":  # signatures
            for code in PYTHON.findall(text):
                compile(code, document, "exec")


def test_the_documents_show_the_whole_chain() -> None:
    shown = {line.split()[1] for line in _commands("gacq-deploy")}
    assert set(cli.commands) <= shown


OWN_RUN = "runs/mine"
OWN_MODEL = "./my-model"
SMALL = (
    # most layers float: every one is learned, compiled, and studied by itself
    "quantization.rules=[{match: '*', ignore: true}, {match: 'up_blocks.1*', bits: 8}, "
    "{match: '*time_emb*', ignore: true}]",
    "samples.trajectories=6",
    "samples.steps=5",
    "calibration.threads=1",
    "calibration.reconstruction.iterations=4",
    "calibration.weighting.iterations=1",
    "calibration.weighting.polish_iterations=1",
    "calibration.polish.steps=4",
    "parity.images=4",
    "parity.steps=5",
    "parity.buckets=2",
    "parity.noise_floor_runs=1",
    # few states tell float16 from float32 by chance
    "parity.probe={trajectories: 16, local_samples: 2}",
    # four iterations learn little
    "parity.budget.eps_sqnr_db=10",
)


SMALLER = {
    "calibrate": [word for value in SMALL for word in ("--set", value)],
    "parity": ["--threads", "1"],
    "run": ["--threads", "1"],
    "bench": ["--repeats", "1", "--threads", "1"],
    "sensitivity": ["--graph", "int8.onnx", "--states", "4", "--threads", "1"],
}
"""Command -> options that make it quick, and change nothing else."""


CHEAP = ("list", "recipes")
"""Commands that run wherever they stand; what is about other models or a GPU is parsed, above."""


def _own_model_commands() -> list[list[str]]:
    """Return the commands on the README's own-model run, once each and in order, for a small model and small numbers.

    The README comes first, then page after page.
    """
    commands = []
    for line in dict.fromkeys(line for document in DOCUMENTS for line in _lines(document)):
        arguments = shlex.split(line)
        if arguments[0] != "gacq-deploy":
            continue
        if arguments[1] in CHEAP or any(a.startswith(OWN_RUN) for a in arguments):
            commands.append(arguments[1:] + SMALLER.get(arguments[1], []))
    return commands


def _save_own_model(folder: Path) -> None:
    # no other test here needs PyTorch
    from tests.support.models.tiny import WITHOUT_ATTENTION, save_model, tiny_unet

    save_model(tiny_unet(classes=None, **WITHOUT_ATTENTION), folder / OWN_MODEL)


@pytest.mark.usefixtures("warm_benches")
@pytest.mark.rtx
@pytest.mark.slow
def test_the_commands_of_the_documents_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _save_own_model(tmp_path)
    write_keys(tmp_path).trusted.rename("trusted.pem")  # as the page on signing makes them by openssl
    commands = _own_model_commands()
    assert any(OWN_MODEL in arguments for arguments in commands)
    assert {arguments[0] for arguments in commands} >= {
        "calibrate",
        "export",
        "build-trt",
        "parity",
        "run",
        "verify",
    }
    for arguments in commands:
        done = invoke(arguments)
        assert done.exit_code == 0, f"{shlex.join(arguments)}\n{done.output}"
        if arguments[0] == "calibrate" and "--dry-run" in arguments:
            assert not Path(OWN_RUN).exists()
        if "-o" in arguments and "--dry-run" not in arguments:
            assert Path(arguments[arguments.index("-o") + 1]).exists()


def _python_chain() -> str:
    """Return the README's chain in Python."""
    (code,) = (
        c for c in PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8")) if "calibrate" in c
    )
    return str(code)


@pytest.mark.slow
def test_the_python_chain_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _save_own_model(tmp_path)
    code = _python_chain()
    assert 'preset="quick"' in code
    names: dict[str, Any] = {"SMALL": SMALL}
    exec(code.replace('preset="quick"', 'preset="ci", overrides=SMALL'), names)
    assert names["made"].images.shape == (4, 1, 8, 8)
    assert (tmp_path / "images.png").is_file()
    assert names["verdict"].passed == (not names["verdict"].failed_gates)


@pytest.mark.slow
def test_the_python_chain_of_the_readme_is_typed(tmp_path: Path) -> None:
    """As a user's type checker sees it: ``reveal_type`` tells that nothing is ``Any``."""
    chain, code = tmp_path / "chain.py", _python_chain()
    wrong = next(line for line in code.splitlines() if "count=4" in line).replace("count=4", 'count="4"')
    chain.write_text(f"{code}reveal_type((verdict, made, run))\n{wrong}\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(chain)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    (error,) = (line for line in done.stdout.splitlines() if ": error: " in line)
    assert f"chain.py:{len(chain.read_text().splitlines())}: " in error
    assert 'Argument "count" to "ImageRequest" has incompatible type "str"' in error
    for name in ("ParityReport", "GeneratedImages", "RunDirectory"):
        assert name in done.stdout


def test_the_readme_shows_results() -> None:
    _, marker, after = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- results -->")
    assert marker, "README.md has no results"
    section = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    table = re.search(r"^\|.+\|\n\|[ :|-]+\|\n\|.*\d.*\|$", section, re.MULTILINE)
    assert table, "no table with figures follows the results marker of README.md"


def test_the_package_is_installed_from_what_was_built_before() -> None:
    """On no index it is to be had yet."""
    for document in DOCUMENTS:
        is_built = False
        for line in _lines(document):
            is_built |= line == "make wheel"
            if line.startswith("pip install") and "gacq" in line:
                assert is_built, f"{document}: {line}"
                assert shlex.split(line)[-1].startswith("dist/gacq_deploy-"), f"{document}: {line}"


@pytest.mark.parametrize("line", sorted(set(_commands("make"))), ids=str)
def test_documented_make_targets_exist(line: str) -> None:
    targets = [word for word in shlex.split(line)[1:] if "=" not in word]
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _anchors(document: Path) -> set[str]:
    """Return the anchors that a page's headings get."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    page = ROOT / document
    for file, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), f"{document} links to {file}"
        if anchor:
            assert anchor in _anchors(target), f"{document} links to {file}#{anchor}"


def _repository_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_tree_names_no_machine_and_no_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in _repository_files()
        if path.suffix in TEXT
        for match in FORBIDDEN.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found


def test_python_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in _repository_files()
        if path.suffix == ".py" and "tests" not in path.parts
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert not long


PLACE = re.compile(r"`([\w./-]+(?:\.py|/))`")


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/development.md"])
def test_every_place_that_a_document_names_exists(document: str) -> None:
    named = PLACE.findall((ROOT / document).read_text(encoding="utf-8"))
    where = (ROOT, ROOT / "gacq_deploy", ROOT / "tests/support")
    assert not [place for place in named if not any((base / place).exists() for base in where)]
    if document.startswith("docs"):
        folders = {f"{p.parent.name}/" for p in (ROOT / "gacq_deploy").glob("*/__init__.py")}
        assert folders <= set(named), "the table of folders lists every one"
