"""`run`: images from the verified engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy.engines.catalogue import REFERENCE
from gacq_deploy_cli.console import Output
from gacq_deploy_cli.following import next_for
from gacq_deploy_cli.options import (
    ENGINES,
    NameOf,
    OutputPath,
    common,
    complete_engine,
    failed_option,
    host_code_option,
    python_option,
    run_directory_argument,
    trusted_option,
    with_output,
)
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import duration

if TYPE_CHECKING:
    from gacq_deploy.recipe.sections import Where
    from gacq_deploy.run_directory import RunDirectory


@click.command(short_help="Generate images with an exported graph.")
@run_directory_argument
@click.option("-n", "--number", type=int, help="Number of images; default: 4, or one a --prompt.")
@click.option(
    "-o",
    "--output",
    "file",
    type=OutputPath(".png"),
    required=True,
    help="PNG of the image grid.",
)
@click.option(
    "--scale",
    type=click.IntRange(1, 16),
    metavar="N",
    help="Enlarge every image N times; default: small ones to 64 pixels or a little more.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Image i starts from seed + i.")
@click.option(
    "--engine",
    default=REFERENCE,
    show_default=True,
    shell_complete=complete_engine,
    help=f"One of {', '.join(ENGINES)}.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Sampler steps; default: the recipe's.")
@click.option(
    "--class",
    "labels",
    type=int,
    multiple=True,
    help="Class label, repeatable; default: every class in turn.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="What a text-to-image model is to show, repeatable, in turn; default: the recipe's prompts.",
)
@click.option("--negative-prompt", metavar="TEXT", help="What every image is guided away from.")
@click.option(
    "--guidance-scale",
    type=float,
    help="Of classifier-free guidance; default: the recipe's, or the pipeline's.",
)
@click.option("--width", type=click.IntRange(min=1), help="In pixels, where the graph leaves the size open.")
@click.option("--height", type=click.IntRange(min=1), help="In pixels, where the graph leaves the size open.")
@click.option(
    "--pipeline",
    metavar="FOLDER",
    help="Where text encoders and decoder lie now; default: where the recipe found them.",
)
@click.option(
    "--device", help="Of text encoders and decoder (cpu, cuda); default: the GPU if the engine is on one."
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Images run together; the denoiser's part never depends on it.",
)
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
    type=NameOf(["worst", "first", "last", "both"]),
    help="Which steps: whose INT8 error moves the image most, the noisiest, the cleanest, both ends in turn.",
)
@host_code_option
@failed_option
@python_option
@trusted_option
@common
@with_output
def run(
    output: Output,
    directory: Path,
    number: int | None,
    file: Path,
    scale: int | None,
    seed: int,
    engine: str,
    steps: int | None,
    labels: tuple[int, ...],
    prompts: tuple[str, ...],
    negative_prompt: str | None,
    guidance_scale: float | None,
    width: int | None,
    height: int | None,
    pipeline: str | None,
    device: str | None,
    batch: int | None,
    scheduler: str | None,
    threads: int,
    float_steps: int | None,
    float_where: Where | None,
    allow_host_code: bool,
    allow_failed: bool,
    allow_python: bool,
    trusted_keys: Path | None,
) -> None:
    """Generate images with an exported graph and write them as one PNG grid.

    The float model runs with --engine float (float.onnx in ONNX Runtime). With ddim and flow no PyTorch
    is needed.

    A text-to-image model runs inside its own pipeline, as calibration found it: its text encoders, scheduler and
    decoder, without its safety checker. Latents of other models are decoded by the pipeline's decoder.
    """
    from gacq_deploy.generate.distributed import make_images_together
    from gacq_deploy.generate.grid import write_grid
    from gacq_deploy.generate.request import ImageRequest
    from gacq_deploy.run_directory import RunDirectory
    from gacq_deploy.sampling.step_policy import policy_document

    run_directory = RunDirectory(directory)
    request = ImageRequest(
        count=(len(prompts) or 4) if number is None else number,
        seed=seed,
        engine=engine,
        labels=labels or None,
        steps=steps,
        batch=batch,
        scheduler=scheduler,
        threads=threads,
        float_steps=float_steps,
        float_where=float_where,
        allow_host_code=allow_host_code,
        allow_failed=allow_failed,
        allow_python=allow_python,
        trusted_keys=trusted_keys,
        prompts=prompts,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        width=width,
        height=height,
        pipeline=pipeline,
        device=device,
    )
    with output.progress() as report:
        made = make_images_together(run_directory, request, report)
    if made is None:
        return  # another process of the group has the images
    write_grid(file, made.images, zoom=scale)
    document = {
        "file": str(file),
        "engine": made.engine,
        "graph": made.graph,
        "seeds": made.seeds,
        "class_labels": made.labels,
        "prompts": made.prompts,
        "negative_prompt": made.negative_prompt,
        "guidance_scale": made.guidance_scale,
        "sampler": made.sampler,
        "timesteps": made.timesteps,
        "step_policy": policy_document(made.policy),
        "seconds": made.seconds,
    }
    conditioning = [("classes", " ".join(map(str, made.labels)) or "none")]
    if made.prompts:
        whose = "" if prompts else _whose_prompts(run_directory)
        conditioning = [
            (f"prompts{whose}", "\n".join(dict.fromkeys(made.prompts))),
            ("guidance", "none" if made.guidance_scale is None else f"{made.guidance_scale:g}"),
        ]
    first, last = made.seeds[0], made.seeds[-1]
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    rows = [
        ("images", f"{len(made.seeds)} ({seeds})"),
        *conditioning,
        ("engine", f"{made.engine}, {made.graph}"),
        ("sampler", f"{made.sampler}, {len(made.timesteps)} steps"),
        *([("steps", made.policy.describe())] if made.policy else []),
    ]
    count = len(made.seeds)
    images = "1 image" if count == 1 else f"{count} images"
    summary = f"{images} in {duration(made.seconds)} ({made.seconds / count:.2f} s each): {file}"
    output.emit(document, Table("run", ["what", ""], rows), summary, *next_for(directory, just_done="run"))


def _whose_prompts(run: RunDirectory) -> str:
    return " (the recipe's)" if run.load_recipe().samples.prompts else " (built-in)"
