"""Write the pages that the code itself tells: recipes, Python API, exit codes, faults. `python -m docs.generate`.

Nothing of the package is imported for the Python API: it is read as a type checker reads it, so the page is the same
on every machine.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gacq_deploy"
WIDTH = 118
NOTE = "<!-- written by `make docs` from {source}: edit that, not this page -->"


def pages() -> dict[str, str]:
    """Return file name -> text of every page that is made from the code."""
    return {
        "recipes.md": recipes(),
        "python-api.md": python_api(),
        "exit-codes.md": exit_codes(),
        "reliability.md": reliability(),
    }


def _page(title: str, source: str, parts: Iterable[str]) -> str:
    return "\n\n".join((f"# {title}", NOTE.format(source=source), *parts)) + "\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head, *body = (f"| {' | '.join(map(_cell, line))} |" for line in ([*columns], *rows))
    return "\n".join((head, re.sub(r"[^|]+", "---", head.replace("\\|", "")), *body))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- recipes


def recipes() -> str:
    """Return the page of built-in recipes, presets and every key, from the schema."""
    from gacq_deploy.recipe.load import builtin_recipes, load_recipe
    from gacq_deploy.recipe.sections import Recipe

    schema = Recipe.model_json_schema(by_alias=True)
    loaded = {name: load_recipe(name) for name in builtin_recipes()}
    built_in = _table(
        ("recipe", "model", "what it is"),
        ((f"`{name}`", f"`{r.model.source}`", r.description) for name, r in loaded.items()),
    )
    return _page(
        "Recipes",
        "the schema of recipes, `recipes/` and the presets",
        (
            "A recipe says which tensors get how many bits and how they are learned. Every key has a default, but\n"
            "`name` and the rules of `quantization`. `calibrate` takes the recipe that suits the model's class;\n"
            "`-r NAME` or `-r FILE` takes another one. `--set KEY=VALUE` overrides one key;\n"
            "`--set KEY+=[...]` adds to a list, and `--set quantization.rules.0.bits=4` changes one item of it.",
            "```sh\ngacq-deploy recipes list\ngacq-deploy recipes show unet-w8a8\n"
            "gacq-deploy recipes validate unet-w8a8 --set samples.steps=10\ngacq-deploy recipes schema\n```",
            "`show` prints a recipe with every default filled in. `schema` prints what stands below as JSON schema.",
            "## Built-in recipes",
            built_in,
            "## Presets",
            *_presets(),
            *(
                part
                for title, name in (("recipe", ""), *_sections(schema, ""))
                for part in _section(schema, title, name)
            ),
        ),
    )


def _presets() -> Iterator[str]:
    from gacq_deploy.recipe.presets import PRESETS, shown_presets

    yield (
        "`--preset` says how much effort samples and learning take. It goes into the recipe before `--set`. Without\n"
        "it the recipe's own numbers hold. `best` has no measured figures yet."
    )
    rows = []
    for name in shown_presets():
        samples, learning = PRESETS[name]["samples"], PRESETS[name]["calibration"]
        weighting = learning["weighting"]
        rows.append(
            (
                f"`{name}`",
                str(samples["trajectories"]),
                str(samples.get("keep_every", 1)),
                str(learning["reconstruction"]["iterations"]),
                str(weighting["polish_iterations"]) if "mode" not in weighting else weighting["mode"],
                str(learning["polish"]["steps"]),
            )
        )
    columns = (
        "preset",
        "trajectories",
        "keeps every k-th step",
        "iterations a block",
        "rounds of sample weights",
        "polish steps",
    )
    yield _table(columns, rows)


def _sections(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, name in the schema) of a section and of all within it, in order."""
    definition = schema["$defs"][prefix.rpartition("/")[2]] if prefix else schema
    base = prefix.partition("/")[0]
    for key, field in definition["properties"].items():
        for name in _references(field):
            dotted = f"{base}.{key}" if base else key
            yield dotted, name
            yield from _sections(schema, f"{dotted}/{name}")


def _references(field: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sections that a field holds, those of a list or a choice included."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2]
    for choice in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _references(choice)
    if "items" in field:
        yield from _references(field["items"])


def _section(schema: Mapping[str, Any], title: str, name: str) -> Iterator[str]:
    definition = schema["$defs"][name] if name else schema
    # sections of a choice tell which one they are by their method
    kind = definition["properties"].get("method", {}).get("const")
    yield f"## `{title}` {f'with `method: {kind}`' if kind else ''}".rstrip()
    meaning = definition.get("description", "")
    if meaning:
        yield _wrapped(meaning)
    rows = [
        (f"`{key}`", _values(field), _default(field), _meaning(schema, field))
        for key, field in definition["properties"].items()
    ]
    yield _table(("key", "takes", "default", "what it is"), rows)


def _meaning(schema: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    """Return what a key is; of a section without words of its own, what the section is."""
    if "description" in field or "$ref" not in field:
        return str(field.get("description", "Always this." if "const" in field else ""))
    text = str(schema["$defs"][field["$ref"].rpartition("/")[2]].get("description", ""))
    return text.partition("\n\n")[0]


def _values(field: Mapping[str, Any]) -> str:
    """Return what a key takes, in words."""
    if "$ref" in field:
        return "a section"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    choices = field.get("anyOf") or field.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(_values(choice) for choice in choices))
    if field["type"] == "array":
        return _array(field)
    return _scalar(field)


def _array(field: Mapping[str, Any]) -> str:
    if "prefixItems" in field:
        return " and ".join(_values(item) for item in field["prefixItems"])
    return f"a list: {_values(field['items'])}"


def _scalar(field: Mapping[str, Any]) -> str:
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    text = words.get(field["type"], "nothing")
    bounds = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    )
    return " ".join((text, *(f"{word} {_number(field[key])}" for key, word in bounds if key in field)))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return "needed"
    value = field["default"]
    if isinstance(value, dict):
        return "below"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{value}`" if value != "" else "empty"


# --- the Python API


def python_api() -> str:
    """Return the page of every public name, from its docstring."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    names = [statement for statement in stub.body if isinstance(statement, ast.ImportFrom)]
    parts = [
        "```python\nimport gacq_deploy as gd\n```",
        _wrapped(
            """Each name is imported when it is first used: running an engine needs no PyTorch. `help(gd.calibrate)`
            shows the same text, and a type checker reads the same types. A run may be given as `gd.RunDirectory` or as
            a path; `AnyRun` stands for both. A `report` is any object with the methods of `gd.Reporter`. The
            [README](../README.md#from-python) shows the chain, and [three scripts](getting-started.md#three-scripts)
            run it."""
        ),
    ]
    for statement in names:
        assert statement.module is not None
        module = PACKAGE.joinpath(*statement.module.split(".")).with_suffix(".py")
        for alias in statement.names:
            parts += _public_name(module, alias.name)
    return _page("Python API", "the docstrings of the names in `gacq_deploy/__init__.pyi`", parts)


def _public_name(module: Path, name: str) -> Iterator[str]:
    body = ast.parse(module.read_text(encoding="utf-8")).body
    node = next(n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
    yield f"## `{name}`"
    if isinstance(node, ast.FunctionDef):
        yield f"```python\n{_signature(node)}\n```"
        yield _docstring(node)
        return
    written = map(ast.unparse, node.bases)
    # that it crosses the disk is said where it is read
    bases = ", ".join(base for base in written if not base.startswith("_") and base != "Record")
    yield f"```python\nclass {name}{f'({bases})' if bases else ''}\n```"
    yield _docstring(node)
    members = [*_fields(node), *_methods(node)]
    if members:
        yield _table(("member", "what it is"), members)


def _signature(node: ast.FunctionDef) -> str:
    arguments = node.args
    shown = [*_plain(arguments), *_keywords(arguments)]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(shown)}){returns}"
    if len(line) <= WIDTH - 12:
        return line
    inner = "".join(f"    {argument},\n" for argument in shown)
    return f"{node.name}(\n{inner}){returns}"


def _plain(arguments: ast.arguments) -> Iterator[str]:
    without = len(arguments.args) - len(arguments.defaults)
    for number, argument in enumerate(arguments.args):
        if argument.arg != "self":
            yield _argument(argument, arguments.defaults[number - without] if number >= without else None)
    if arguments.vararg:
        yield f"*{_argument(arguments.vararg, None)}"


def _keywords(arguments: ast.arguments) -> Iterator[str]:
    if arguments.kwonlyargs and not arguments.vararg:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg:
        yield f"**{_argument(arguments.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{kind}{f' = {ast.unparse(default)}' if default is not None else ''}"


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if statement.target.id.startswith("_"):
            continue
        default = f" = {ast.unparse(statement.value)}" if statement.value else ""
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = str(after.value.value)
        yield f"`{statement.target.id}: {ast.unparse(statement.annotation)}{default}`", _codes(text)


def _methods(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement in node.body:
        if not isinstance(statement, ast.FunctionDef) or statement.name.startswith("_"):
            continue
        is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in statement.decorator_list)
        signature = " ".join(_signature(statement).split()).replace("( ", "(").replace(",)", ")")
        kind = f": {ast.unparse(statement.returns)}" if is_property and statement.returns else ""
        text = ast.get_docstring(statement) or ""
        yield f"`{f'{statement.name}{kind}' if is_property else signature}`", _codes(text.split("\n\n")[0])


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return a docstring as Markdown: sections of the Google style become lists."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    parts = []
    for paragraph in text.split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if head in ("Args:", "Raises:"):
            parts.append(f"{'Takes' if head == 'Args:' else 'Raises'}:\n\n{_items(rest)}")
        elif head == "Returns:":
            parts.append(_wrapped(f"Returns: {_codes(rest)}"))
        else:
            parts.append(_wrapped(_codes(paragraph)))
    return "\n\n".join(parts)


def _items(text: str) -> str:
    """Return ``name: what it is`` lines, of which each may go on deeper indented, as a list."""
    items: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        if line.startswith(" "):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line)
    lines = []
    for item in items:
        name, _, meaning = item.partition(": ")
        names = ", ".join(f"`{part}`" for part in name.split(", "))
        lines.append(_wrapped(f"- {names}: {_codes(meaning)}", indent="  "))
    return "\n".join(lines)


def _codes(text: str) -> str:
    """Return reST's code marks as Markdown's."""
    for role in (":class:", ":func:", ":data:", ":mod:", ":meth:", ":attr:"):
        text = text.replace(role, "")
    return text.replace("``", "`")


def _wrapped(text: str, indent: str = "") -> str:
    """Return text in lines of at most `WIDTH` characters; code that holds spaces may be broken, as Markdown allows."""
    words = " ".join(text.split())
    return textwrap.fill(
        words, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


# --- exit codes

_MORE: Mapping[int, str] = {
    0: "The command did what was asked.",
    1: "A graph is illegal, an engine failed, or a bug: `--debug` shows the traceback.",
    2: "An argument, an option, a recipe or a model is not what the command takes.",
    3: "`parity`, `quickstart`, `build-trt`, `lint` or `check` said no; an engine that failed parity was asked for.",
    4: "A package, a device or a driver; the hint names the line that installs it. `doctor` shows all.",
    5: "`verify` says which file, and what makes it anew.",
    6: "Or another process holds the run directory.",
    129: "The terminal went away. The same command goes on where it stopped; under `nohup` it is not stopped.",
    130: "Ctrl-C. The same command goes on where it stopped.",
    141: "As a shell says it of `gacq-deploy ... | head`.",
    143: "`kill`, `docker stop`, the eviction of a pod. The same command goes on where it stopped.",
}


def exit_codes() -> str:
    """Return the page of exit codes, from the table that the command line uses."""
    from gacq_deploy_cli.exit_codes import EXIT_CODES, MEANINGS

    rows = []
    for code, meaning in MEANINGS.items():
        errors = ", ".join(f"`{_error_name(error)}`" for error, given in EXIT_CODES if given == code)
        rows.append((str(code), meaning, errors or "-", _MORE.get(code, "")))
    return _page(
        "Exit codes",
        "`cli/gacq_deploy_cli/exit_codes.py`",
        (
            "Every command leaves with one of these. With `--json` an error is one document on stdout,\n"
            '`{"error": {"kind", "message", "hint", "exit_code"}}`; logs go to stderr.',
            _table(("code", "meaning", "errors", "when"), rows),
            "The first class that fits decides: `RecipeError` is a `UsageError`, and every error of the package is a\n"
            "`GacqError`. `gd.GacqError` is what the Python functions raise, with `message` and `hint`.",
        ),
    )


def _error_name(error: type[BaseException]) -> str:
    library = error.__module__.partition(".")[0]
    return error.__name__ if library in ("gacq_deploy", "builtins") else f"{library}.{error.__name__}"


# --- reliability


def reliability() -> str:
    """Return the page of faults that are tried, from the table that the tests keep to."""
    from benchmarks.store import RESULTS, load_rows
    from gacq_deploy_cli.exit_codes import MEANINGS
    from tests.faults.matrix import GROUPS, ROWS

    shown = sum(row.tested for row in ROWS)
    parts = [
        f"{len(ROWS)} faults are tried on purpose: {shown} are shown by a test, {len(ROWS) - shown} speak of a\n"
        "server, which there is not.",
        "`python -m benchmarks.faults` runs all of these tests: the column held is what came of it. `make test` runs\n"
        "them, too, but those that take minutes: of kills at random moments it tries a tenth. Each has a mutant in\n"
        "`tests/mutants/`: a copy of the code without what guards against the fault, in which the test fails.",
        "What holds of all: the exit code is the one of its kind, the message names file or field and the remedy, no\n"
        "traceback is shown, what was good before is the same to the byte, and nothing half written stays under a\n"
        "final name.",
        "## Exit codes",
        "[Exit codes](exit-codes.md) says which errors lead to which.",
        _table(("code", "meaning"), ((str(code), meaning) for code, meaning in MEANINGS.items())),
    ]
    held = {key for key, row in load_rows(RESULTS / "faults.jsonl").items() if row["held"]}
    for letter, group in GROUPS.items():
        rows = [row for row in ROWS if row.group == letter]
        table = (
            (r.name, r.expected, "yes" if r.key in held else "no" if r.tested else "-", r.where) for r in rows
        )
        parts += [
            f"## {letter}. {group.title}",
            f"{sum(row.tested for row in rows)} of {len(rows)} cases.",
            _table(("case", "what has to happen", "held", "where tested"), table),
        ]
    return _page("Reliability", "`tests/faults/matrix.py`", parts)


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
