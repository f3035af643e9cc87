"""`report`: everything that stands in a run directory, on one page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gacq_deploy_cli.console import Output
from gacq_deploy_cli.following import next_for
from gacq_deploy_cli.options import OutputPath, common, run_directory_argument, with_output
from gacq_deploy_cli.units import size


@click.command(short_help="One HTML page about a run.")
@run_directory_argument
@click.option(
    "-o",
    "--output",
    "file",
    type=OutputPath(".html", but="report.html"),
    help="The page; default: report.html in the run directory.",
)
@click.option(
    "--images/--no-images",
    default=True,
    show_default=True,
    help="Make the same images with the float and the INT8 graph.",
)
@click.option(
    "--pipeline",
    metavar="FOLDER",
    help="Of a model of latents: the pipeline that decodes them, where it is no longer where the recipe found it.",
)
@common
@with_output
def report(output: Output, directory: Path, file: Path | None, images: bool, pipeline: str | None) -> None:
    """Write one self-contained HTML page: verdict, images, errors, gates, speed, weights, layers, settings.

    It needs neither network nor PyTorch, but for the images of a model of latents, which its own pipeline decodes; and
    it says which command makes what is not there yet. Exit code 0 says that the page was written; the verdict stands
    in it.
    """
    from gacq_deploy.report import write_report
    from gacq_deploy.run_directory import RunDirectory

    with output.progress() as progress:
        page = write_report(RunDirectory(directory), file, images=images, pipeline=pipeline, report=progress)
    output.emit(
        asdict(page),
        *(f"without {part}: {why}" for part, why in page.missing.items()),
        *page.sentences,
        f"report: {page.path} ({size(page.bytes)}), verdict: {page.verdict}. Open it in a browser.",
        *next_for(directory, just_done="report"),
    )
