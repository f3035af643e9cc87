"""`sign`: who answers for this run?"""

from __future__ import annotations

from pathlib import Path

import click

from gacq_deploy_cli.console import Output
from gacq_deploy_cli.following import next_for
from gacq_deploy_cli.options import GivenPath, common, run_directory_argument, with_output


@click.command(short_help="Sign what production reads of a run.")
@run_directory_argument
@click.option(
    "--key",
    type=GivenPath(dir_okay=False),
    metavar="FILE",
    required=True,
    help="Private ed25519 key, PEM; only its owner may read it.",
)
@common
@with_output
def sign(output: Output, directory: Path, key: Path) -> None:
    """Sign recipe, artifact, graphs, engines and parity report of a run, in one file in it.

    A digest says that a file is what was written; a signature says who stands behind it. Whoever has the public key
    passes it to verify, run or load_denoiser (--trusted-keys), which then open nothing else. Sign last: after parity
    or build-trt a run has to be signed again.

    A key is made with: openssl genpkey -algorithm ed25519 -out key.pem
    """
    from gacq_deploy.run_directory import RunDirectory
    from gacq_deploy.sign.stage import sign_run

    run = RunDirectory(directory)
    signature = sign_run(run, key)
    document = {
        "file": str(run.signature_json),
        "key": signature.key,
        "files": {name: entry.sha256 for name, entry in signature.files.items()},
    }
    said = f"signed {len(signature.files)} files with key {signature.key}: {run.signature_json}"
    output.emit(document, said, *next_for(directory))
