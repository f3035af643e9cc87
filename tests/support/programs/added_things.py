"""What one writes to add one of each: the table of docs/development.md, done."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.support.programs.edited_checkout import EditedCheckout

Addition = Callable[[EditedCheckout], None]


def _add_engine(checkout: EditedCheckout) -> None:
    """One that runs in ONNX Runtime under another name, at the end of the catalogue."""
    checkout.write(
        "gacq_deploy/backends/patient.py",
        '''"""ONNX Runtime, but patient."""

from pathlib import Path

from gacq_deploy.backends.ort import OrtCpuEngine


class PatientEngine(OrtCpuEngine):
    """Takes its time."""

    def __init__(self, model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> None:
        super().__init__(model, threads=threads, optimize=optimize)
        self._label = f"patient {self._label}"
''',
    )
    checkout.put_after(
        "gacq_deploy/engines/catalogue.py",
        '        runs_in="ort-cpu",\n    ),\n',
        """    EngineRecord(
        name="patient",
        backend="gacq_deploy.backends.patient:PatientEngine",
        install=_pip("patient"),
        graphs=(CANONICAL,),
    ),
""",
    )
    checkout.put_before(
        "docs/commands.md",
        "| `float` |",
        "| `patient` | patient | `int8.onnx` | `pip install 'gacq-deploy[patient]'` | no |\n",
    )
    checkout.put_before("pyproject.toml", 'openvino = ["', 'patient = ["onnxruntime>=1.24"]\n')


def _add_recipe(checkout: EditedCheckout) -> None:
    """One with the least that a recipe needs."""
    checkout.write(
        "recipes/mine-w8a8.yaml",
        """schema: gacq-deploy/recipe/1
name: mine-w8a8
description: Everything that can be quantized in INT8, learned as usual.
quantization: {level: linear}
""",
    )


def _add_range_method(checkout: EditedCheckout) -> None:
    """One that takes so many standard deviations."""
    recipe, estimators = "gacq_deploy/recipe/quantization.py", "gacq_deploy/quant/ranges.py"
    checkout.put_before(
        recipe,
        "_AnyRange = ",
        '''class SpreadRange(RangeSection):
    """So many standard deviations."""

    method: Literal["spread"]
    deviations: float = Field(default=3.0, gt=0)


''',
    )
    checkout.put_after(recipe, "_AnyRange = MinMaxRange", " | SpreadRange")
    checkout.put_before(
        estimators,
        "ESTIMATORS: dict[str, Estimator] = {\n",
        """def _spread_of_rows(rows: Tensor, spec: TensorSpec, deviations: float) -> Tensor:
    return deviations * rows.pow(2).mean(1).sqrt() / spec.qmax


def _spread(seen: Histogram, spec: TensorSpec, deviations: float) -> float:
    centres = (torch.arange(len(seen.counts)) + 0.5) * seen.width
    share = seen.counts / seen.counts.sum()
    return deviations * float((share * centres.pow(2)).sum().sqrt()) / spec.qmax


""",
    )
    checkout.put_after(
        estimators,
        "ESTIMATORS: dict[str, Estimator] = {\n",
        '    "spread": Estimator(_spread_of_rows, _spread),\n',
    )


def _add_parity_gate(checkout: EditedCheckout) -> None:
    """One on the worst image, which is measured already."""
    checkout.put_after(
        "gacq_deploy/parity/report.py",
        "_TRAJECTORIES = {\n",
        """    "image_psnr_db_min": Gate(
        "PSNR of the worst image (dB)", lambda s: s.budget.image_psnr_db_min, at_least=True
    ),
""",
    )
    checkout.put_after(
        "gacq_deploy/recipe/sections.py",
        '    """Least mean SSIM between same-seed images."""\n',
        '    image_psnr_db_min: float = 99.0\n    """Least PSNR of any image."""\n',
    )
    numbers = "tests/unit/parity/test_report.py"
    checkout.put_after(numbers, '    "budget": {\n', '        "image_psnr_db_min": 100,\n')
    checkout.put_after(numbers, '    "mixed": {', '"image_psnr_db_min": 100, ')
    checkout.put_after(numbers, "BAD: dict[str, float] = {\n", '    "image_psnr_db_min": 98.9,\n')


def _add_lint_rule(checkout: EditedCheckout) -> None:
    """One against graphs that draw random numbers."""
    checkout.append(
        "gacq_deploy/lint/operators.py",
        '''

def random_operator(view: QuantView) -> Iterator[Hit]:
    """Find operators that draw random numbers."""
    for node in view.index.of_type("RandomNormalLike"):
        yield Hit(name_of(node), f"{node.op_type} draws anew in every run")
''',
    )
    checkout.put_after(
        "gacq_deploy/lint/rules.py",
        "    # operators\n",
        """    LintRule("random-operator", operators.random_operator, {"tensorrt": "error", "openvino": "warn"},
         "No two runs agree.", "Draw the noise outside of the graph."),
""",
    )
    checkout.put_after(
        "tests/unit/lint/test_lint.py",
        "CASES = [\n",
        '    Case("random-operator", TRT, "error", "special", _operator("RandomNormalLike")),\n',
    )


def _add_artifact_version(checkout: EditedCheckout) -> None:
    """The next one, which holds what this one does."""
    checkout.edit("gacq_deploy/artifact/artifact.py", "\nSCHEMA_VERSION = 1\n", "\nSCHEMA_VERSION = 2\n")


def _add_command(checkout: EditedCheckout) -> None:
    """One that counts operators, in a folder of its own."""
    checkout.write("gacq_deploy/census/__init__.py", '"""How often does a graph use each operator?"""\n')
    checkout.write(
        "gacq_deploy/census/stage.py",
        '''"""Count the operators of a graph."""

from collections import Counter
from pathlib import Path

from gacq_deploy.graph.files import read_graph


def count_operators(path: Path) -> dict[str, int]:
    """Return operator -> how many nodes of it the graph has."""
    return dict(Counter(node.op_type for node in read_graph(path).graph.node))
''',
    )
    checkout.write(
        "cli/gacq_deploy_cli/census.py",
        '''"""`census`: how often does a graph use each operator?"""

from pathlib import Path

import click

from gacq_deploy_cli.console import Output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.options import common, with_output


@click.command(short_help="Count operators.")
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE.onnx")
@common
@with_output
def census(output: Output, path: Path) -> None:
    """Count the operators of a graph."""
    from gacq_deploy.census.stage import count_operators

    counts = count_operators(path)
    output.emit(counts, Table("census", ["operator", "nodes"], counts.items()))
''',
    )
    checkout.put_after("cli/gacq_deploy_cli/main.py", '    "lint",\n', '    "census",\n')
    checkout.put_after("pyproject.toml", '    "gacq_deploy.check",\n', '    "gacq_deploy.census",\n')
    page = "docs/commands.md"
    checkout.put_after(page, "gacq-deploy recipes list\n", "gacq-deploy census graph.onnx\n")
    checkout.put_after(
        page,
        "| `recipes` | `list`, `show`, `validate`, `schema` | - |\n",
        "| `census` | counts operators | - |\n",
    )
    checkout.put_after(
        "docs/development.md",
        "| folder | the question it answers |\n|---|---|\n",
        "| `census/` | how often does a graph use each operator? |\n",
    )


ADDITIONS: Mapping[str, Addition] = {
    "an engine": _add_engine,
    "a recipe": _add_recipe,
    "a range method": _add_range_method,
    "a parity gate": _add_parity_gate,
    "a lint rule": _add_lint_rule,
    "a version of the artifact": _add_artifact_version,
    "a command": _add_command,
}
"""By the table's own word for it; a model family needs no edit."""
