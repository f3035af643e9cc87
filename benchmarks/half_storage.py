"""What does keeping half-precision weights as they are stored save in calibration, and what does it cost?

Usage::

    python -m benchmarks.half_storage

Writes ``results/half_storage.jsonl``. A UNet shaped as SD 1.5's with random weights is stored as bfloat16 and loaded
twice, in a process of its own each: weights kept as stored, and all of them made float32 at once. Measured are the
process's own memory (RssAnon) and resident file pages (RssFile) after forward passes of two rows, and the time of
one; the outputs' digests must be equal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.large_models import MIDDLE
from benchmarks.store import RESULTS, write_rows
from gacq_deploy.models.source import find_source, load_module
from gacq_deploy.recipe.sections import ModelSection
from gacq_deploy.storage.digests import digest_array

PASSES = 5


def main() -> None:
    """Make the model, load it both ways, write down what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "KEEP"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(Path(chosen.measure[0]), keep=chosen.measure[1] == "stored")))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        module = UNet2DConditionModel(**MIDDLE).to(torch.bfloat16)
        module.save_pretrained(folder)
        parameters = sum(p.numel() for p in module.parameters())
        del module
        cases = {}
        for case in ("stored", "float32"):
            command = [sys.executable, "-m", "benchmarks.half_storage", "--measure", folder, case]
            cases[case] = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
    assert cases["stored"]["output"] == cases["float32"]["output"], "the outputs differ"
    about = {"date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__}
    write_rows(RESULTS / "half_storage.jsonl", cases, {**about, "parameters": parameters})
    print(json.dumps(cases, indent=2))


@torch.no_grad()
def measure(folder: Path, *, keep: bool) -> dict[str, Any]:
    """Return memory in MB, the least seconds of a pass, and the output's digest."""
    torch.set_num_threads(1)
    module = load_module(find_source(ModelSection(source=str(folder))), keep_stored=keep)
    noise = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 32, 32, generator=noise)
    text = torch.randn(2, 77, 768, generator=noise)
    seconds = []
    for _ in range(PASSES):
        began = time.process_time()
        output = module(sample, torch.tensor([10, 500]), encoder_hidden_states=text).sample
        seconds.append(time.process_time() - began)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        **{name: round(int(status[name].split()[0]) / 1024) for name in ("RssAnon", "RssFile")},
        "seconds": round(min(seconds), 2),
        "output": digest_array(output.numpy()),
    }


if __name__ == "__main__":
    main()
