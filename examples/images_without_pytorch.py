"""Images and speed without PyTorch: ``python examples/images_without_pytorch.py runs/digits``.

Takes the run that calibrate_and_judge.py makes; the run directory can be copied to another machine. It needs numpy,
onnx and ONNX Runtime.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gacq_deploy as gd


def make(directory: str, count: int = 10) -> gd.GeneratedImages:
    """Draw images with the INT8 graph and say how fast it is beside the float one."""
    made = gd.make_images(directory, gd.ImageRequest(count=count, seed=0, engine="ort-cpu"))
    picture = Path(directory) / "images.png"
    gd.write_grid(picture, made.images)
    print(f"{len(made.images)} images of {made.graph} in {made.seconds:.2f} s: {picture}")
    settings = gd.BenchSettings(batches=(1,), threads=1, repeats=1)
    bench = gd.run_bench(directory, engines=["ort-cpu"], settings=settings)
    for ratio in bench.ratios:
        print(
            f"{ratio.candidate}, batch {ratio.batch}: {ratio.cpu.median:.2f} times as fast as {ratio.baseline}"
        )
    return made


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="a run of builtin:digits8")
    arguments = parser.parse_args()
    make(arguments.directory)


if __name__ == "__main__":
    main()
