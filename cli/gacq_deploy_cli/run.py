"""`run`: images from the verified engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import Output, Table, duration
from gacq_deploy_cli.options import ENGINES, common, host_code_option, run_directory_argument, with_output

if TYPE_CHECKING:
    from gacq_deploy.recipe import Where


def _require_png(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """Refuse another format before the work, not after it."""
    if value.suffix.lower() != ".png":
        raise click.BadParameter(
            f"'{value}' does not end in .png; images are written as PNG.", context, parameter
        )
    return value


@click.command(short_help="Generate images with an exported graph.")
@run_directory_argument
@click.option("-n", "--number", type=int, default=4, show_default=True, help="Number of images.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="PNG of the image grid.",
    callback=_require_png,
)
@click.option("--seed", type=int, default=0, show_default=True, help="Image i starts from seed + i.")
@click.option("--engine", default="ort-cpu", show_default=True, help=f"One of {', '.join(ENGINES)}.")
@click.option("--steps", type=click.IntRange(min=1), help="Sampler steps; default: the recipe's.")
@click.option(
    "--class",
    "labels",
    type=int,
    multiple=True,
    help="Class label, repeatable; default: every class in turn.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Images run together; never changes an image.")
@click.option(
    "--scheduler",
    metavar="NAME",
    help="ddim, flow, or a scheduler class of diffusers; default: the model's own process, by ddim or flow if one can.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 lets the engine choose."
)
@click.option(
    "--float-steps",
    type=click.IntRange(min=0),
    metavar="K",
    help="Run K sampler steps in float; default: the recipe's step policy.",
)
@click.option(
    "--float-where",
    type=click.Choice(["worst", "first", "last", "both"]),
    help="Which steps: whose INT8 error moves the image most, the noisiest, the cleanest, both ends in turn.",
)
@host_code_option
@common
@with_output
def run(
    output: Output,
    directory: Path,
    number: int,
    file: Path,
    seed: int,
    engine: str,
    steps: int | None,
    labels: tuple[int, ...],
    batch: int | None,
    scheduler: str | None,
    threads: int,
    float_steps: int | None,
    float_where: Where | None,
    allow_host_code: bool,
) -> None:
    """Generate images with an exported graph and write them as one PNG grid.

    The float model runs with --engine float (float.onnx in ONNX Runtime). With ddim and flow no PyTorch
    is needed.
    """
    from gacq_deploy.images import write_grid
    from gacq_deploy.run_directory import RunDirectory
    from gacq_deploy.sampling import ImageRequest
    from gacq_deploy.sampling_together import make_images_together
    from gacq_deploy.step_policy import policy_document

    request = ImageRequest(
        number, seed, engine, labels or None, steps, batch, scheduler, threads, float_steps, float_where,
        allow_host_code,
    )  # fmt: skip
    with output.progress() as report:
        made = make_images_together(RunDirectory(directory), request, report)
    if made is None:
        return  # another process of the group has the images
    write_grid(file, made.images)
    document = {
        "file": str(file),
        "engine": made.engine,
        "graph": made.graph,
        "seeds": made.seeds,
        "class_labels": made.labels,
        "sampler": made.sampler,
        "timesteps": made.timesteps,
        "step_policy": policy_document(made.policy),
        "seconds": made.seconds,
    }
    rows = [
        ("images", f"{len(made.seeds)} (seeds {made.seeds[0]} to {made.seeds[-1]})"),
        ("classes", " ".join(map(str, made.labels)) or "none"),
        ("engine", f"{made.engine}, {made.graph}"),
        ("sampler", f"{made.sampler}, {len(made.timesteps)} steps"),
        *([("steps", made.policy.describe())] if made.policy else []),
        ("time", duration(made.seconds)),
        ("written", file),
    ]
    output.emit(document, Table("run", ["what", ""], rows))
