"""Do the pages of docs/ say what the code says? Generated ones are what the generator gives; tables match the code."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from docs import generate
from gacq_deploy import __version__
from gacq_deploy.engines.catalogue import BUILT_IN
from gacq_deploy.models.recipe_choice import choose_recipe
from gacq_deploy.parity.report import GATES
from gacq_deploy.recipe.load import builtin_recipes
from gacq_deploy.recipe.presets import shown_presets
from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.main import cli
from tests.support.programs.commands import invoke

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
GLOSSARY = (
    "W8A8", "Q/DQ", "SQNR", "bucket", "polish", "gate", "probe", "flavour", "plan", "effective", "alignment"
)  # fmt: skip
JUDGES = ("parity", "verify", "lint", "check")


def _rows(text: str) -> list[list[str]]:
    """Return the cells of a page's table rows."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120] == []


def test_the_picture_of_the_readme_is_small() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert (ROOT / picture).stat().st_size < 150_000


def test_the_readme_leads_to_every_page() -> None:
    assert set(PAGES) <= set(re.findall(r"\]\(docs/([\w-]+\.md)", README))


@pytest.mark.parametrize("name", ["recipes.md", "python-api.md", "exit-codes.md", "reliability.md"])
def test_a_generated_page_is_what_the_generator_gives(name: str) -> None:
    assert PAGES[name] == generate.pages()[name], "run `make docs`"


def test_every_key_of_a_recipe_is_explained() -> None:
    rows = [row for row in _rows(PAGES["recipes.md"]) if len(row) == 4 and row[0] not in ("key", "---")]
    assert len(rows) > 90
    assert [row[0] for row in rows if not row[3]] == []


def test_every_public_name_stands_on_the_page() -> None:
    import gacq_deploy as gd

    told = set(re.findall(r"^## `(\w+)`$", PAGES["python-api.md"], re.MULTILINE))
    assert told == set(gd.__all__) - {"__version__"}


def test_every_command_has_a_row() -> None:
    rows = {row[0].strip("`").split()[0] for row in _rows(PAGES["commands.md"].split("\n## ")[0])[2:]}
    assert rows == set(cli.commands)


def test_every_engine_has_a_row() -> None:
    rows = {row[0].strip("`"): row for row in _rows(PAGES["commands.md"].split("## Engines")[1])[2:]}
    assert set(rows) == {record.name for record in BUILT_IN}
    for record in BUILT_IN:
        _, library, graph, install, default = rows[record.name]
        assert library in (record.title, record.name)
        assert graph == f"`{record.best_graph}`" + ", compiled" * record.compiled
        assert install == f"`{record.install}`"
        assert default.startswith("yes") == record.by_default


def test_every_preset_has_a_row() -> None:
    rows = {row[0].strip("`") for row in _rows(PAGES["getting-started.md"])}
    assert set(shown_presets()) <= rows
    assert f"--preset {'|'.join(shown_presets())}" in README


def test_models_take_the_recipes_that_their_rows_say() -> None:
    table = PAGES["models.md"].split("<!-- models -->")[1].split("<!-- /models -->")[0]
    named = set()
    for kind, _, recipe, others, _ in _rows(table)[2:]:
        config = {"addition_embed_type": "text_time"} if "pooled" in kind else {}
        chosen = choose_recipe(kind.split("`")[1], config).recipe
        assert recipe == f"`{chosen}`"
        named |= {chosen, *re.findall(r"`([\w-]+)`", others)}
    general = {choose_recipe(kind, {}).recipe for kind in ("UNetOfSomebody", "TransformerOfSomebody")}
    assert named | general <= set(builtin_recipes())
    assert {"`fashion-w8a8`", "`fashion-w4a8`"} <= set(re.findall(r"`[\w-]+`", table))


def test_every_exit_code_has_a_meaning() -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert set(exit_codes.MEANINGS) == codes
    assert {code for _, code in exit_codes.EXIT_CODES} <= codes
    told = " ".join(invoke(["--help"]).output.split())
    for code, meaning in exit_codes.MEANINGS.items():
        assert f"{code} {meaning}" in told


def test_the_glossary_has_the_words() -> None:
    words = " ".join(row[0] for row in _rows(PAGES["glossary.md"]))
    assert [word for word in GLOSSARY if word not in words] == []


def test_one_table_says_which_command_answers_what() -> None:
    section = PAGES["parity.md"].split("## Which command answers what")[1]
    codes = {row[0].strip("`").split()[0]: int(row[-1]) for row in _rows(section)[2:]}
    assert tuple(codes) == JUDGES
    assert codes.pop("verify") == exit_codes.STALE
    assert set(codes.values()) == {exit_codes.GATE}


def test_the_example_of_a_failure_uses_the_gates_own_words() -> None:
    (shown,) = re.findall(r"```text\n(DO NOT SHIP.*?)```", PAGES["parity.md"], re.DOTALL)
    told = re.findall(r"^- [\w.@-]+: (.+) is [\d.]+, needs [\d.]+$", shown, re.MULTILINE)
    meanings = {gate.meaning for gates in GATES.values() for gate in gates.values()}
    assert len(told) == 9
    assert set(told) <= meanings
    for line in re.findall(r"^  (gacq-deploy .+)$", shown, re.MULTILINE):
        _, command, *rest = shlex.split(line, comments=True)
        cli.commands[command].make_context(command, rest)


def _said_by_the_code() -> str:
    """Return every string constant, parts of f-strings too, one a line."""
    texts = []
    for folder in ("gacq_deploy", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts += [
                n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
    return "\n".join(texts)


def test_explained_messages_are_those_of_the_code() -> None:
    explained = re.findall(r"^### `(.+)`$", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(explained) > 20
    said = _said_by_the_code()
    assert [message for message in explained if message not in said] == []


def test_the_method_shows_the_papers_figures_the_bad_one_too() -> None:
    rows = {row[0]: row[1:] for row in _rows(PAGES["method.md"])}
    assert rows["ImageNet, W4A8"] == ["10.91 / 7.67", "10.29 / 7.35", "9.96 / **7.55**"]
    assert "**got worse**, from 7.35 to 7.55" in PAGES["method.md"]


def test_the_readme_keeps_to_the_measured_figures() -> None:
    """Each row of the README's short table is one of the long one."""
    measured = [" ".join(row) for row in _rows(PAGES["results.md"])]
    short = README.split("<!-- results -->")[1].split("\n## ")[0]
    rows = _rows(short)[2:]
    assert len(rows) == 6
    for setting, _, psnr, sqnr, kid in rows:
        figures = (psnr.partition(" (")[0], sqnr, kid)
        assert any(row.startswith(setting) and all(f in row for f in figures) for row in measured)


def test_the_readme_says_where_pytorch_ends() -> None:
    """The commands that it names after `export` ask for no extra that brings PyTorch."""
    (paragraph,) = (p for p in README.split("\n\n") if p.startswith("PyTorch ends after `"))
    last, *free = re.findall(r"`([\w-]+)`", paragraph)
    sources = {
        name: ROOT / "cli" / "gacq_deploy_cli" / f"{name.replace('-', '_')}.py" for name in cli.commands
    }
    asks = re.compile(r'needs_extra\("(?:\w+,)*calibrate"')
    asking = {n for n, path in sources.items() if path.exists() and asks.search(path.read_text("utf-8"))}
    assert last in asking
    assert len(free) == 4
    assert not set(free) & asking


def _all_text() -> str:
    return "\n".join((README, *PAGES.values()))


def test_extras_and_versions_are_real() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = re.findall(r"(?:gacq-deploy|\.whl)\[([\w,]+)\]", _all_text())
    assert named
    assert {extra for group in named for extra in group.split(",")} <= set(extras)
    assert set(re.findall(r"gacq_deploy-([\d.]+)-py3", _all_text())) == {__version__}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_reports_of_bugs_bring_what_is_needed() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert len(templates) == 3
    for template in templates:
        text = template.read_text(encoding="utf-8")
        assert {"name", "about"} <= set(yaml.safe_load(text.split("---")[1]))
        assert "gacq-deploy doctor --json" in text
        assert "gacq-deploy verify" in text


def test_changes_bring_what_is_needed() -> None:
    text = (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    assert {"make check", "make test"} <= set(re.findall(r"`([^`]+)`", text))
    assert {"CONTRIBUTING.md", "CHANGELOG.md"} <= set(re.findall(r"\(\.\./([\w.]+)\)", text))


def test_who_finds_a_hole_is_told_how_to_report_it() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["What is promised", "Versions", "How to report"]
    template = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.md").read_text(encoding="utf-8")
    assert "(../../SECURITY.md)" in template


def test_no_document_names_an_address_of_the_project() -> None:
    """There is none yet: what is linked is papers."""
    texts = (_all_text(), *((ROOT / f).read_text() for f in ("SECURITY.md", "CHANGELOG.md", "CITATION.cff")))
    addresses = {address for text in texts for address in re.findall(r"https?://([\w.-]+)", text)}
    assert addresses <= {"arxiv.org"}
