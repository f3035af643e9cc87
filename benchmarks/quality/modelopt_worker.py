"""NVIDIA ModelOpt on one denoiser, in its own environment: calibrate as it does, and write down what it found.

This file alone runs in the environment of ``benchmarks/requirements-modelopt.txt`` and imports nothing of this
repository; ``modelopt_rows.py`` calls it and measures the result in the same engine as every other row.

It writes one safetensors file: ``<module>:input.amax`` (scalar), ``<module>:weight.amax`` [out], the weight that is
rounded ``<module>:weight`` (SmoothQuant changes it), ``<module>:pre_quant_scale`` [in] where there is one, and
``check.*``: inputs and ModelOpt's own fake-quantized outputs, against which the graph built from these is checked.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.quantization.calib import HistogramCalibrator
from modelopt.torch.quantization.model_calib import enable_stats_collection
from modelopt.torch.quantization.nn import TensorQuantizer
from safetensors.numpy import load_file, save_file
from torch import nn

PRESETS = {
    "max": "INT8_DEFAULT_CFG",
    "percentile": "INT8_DEFAULT_CFG",
    "smoothquant": "INT8_SMOOTHQUANT_CFG",
}
CHECKED_ROWS = 32


def load_model(folder: Path) -> nn.Module:
    """Return the float model of a pipeline folder."""
    part = next(folder / name for name in ("unet", "transformer") if (folder / name).is_dir())
    kind = json.loads((part / "config.json").read_text())["_class_name"]
    model: nn.Module = getattr(diffusers, kind).from_pretrained(
        part, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True
    )
    return model.eval()


def call(model: nn.Module, rows: dict[str, np.ndarray]) -> torch.Tensor:
    """Run the model on rows of calibration samples."""
    labels = rows.get("cond.class_labels")
    return model(
        torch.from_numpy(rows["latents"]),
        torch.from_numpy(rows["timesteps"]),
        class_labels=None if labels is None else torch.from_numpy(labels),
    ).sample


def quantize(
    model: nn.Module, method: str, modules: list[str], weight_bits: int, loop: Callable[[Any], None]
) -> None:
    """Quantize ``modules`` in place by one of ModelOpt's presets; everything else stays float."""
    config = copy.deepcopy(getattr(mtq, PRESETS[method]))
    kept = {f"{name}.{kind}_quantizer" for name in modules for kind in ("input", "weight")}
    if method == "percentile":
        config["quant_cfg"].append(
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "calibrator": "histogram"}}
        )
    if weight_bits != 8:
        config["quant_cfg"].append(
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": weight_bits, "axis": 0}}
        )
    mtq.replace_quant_module(model)
    names = [name for name, _ in model.named_modules() if name.endswith("_quantizer")]
    config["quant_cfg"] += [{"quantizer_name": n, "enable": False} for n in names if n not in kept]
    mtq.set_quantizer_by_cfg(model, config["quant_cfg"])
    if method == "percentile":
        # the presets' algorithm takes the largest value whatever was collected: ask the histograms themselves
        enable_stats_collection(model)
        with torch.no_grad():
            loop(model)
        load_percentile(model)
    else:
        mtq.calibrate(model, config["algorithm"], forward_loop=loop)


def load_percentile(model: nn.Module, percentile: float = 99.9) -> None:
    """Set activation ranges from ModelOpt's histograms; weights keep their largest value."""
    for module in model.modules():
        if not isinstance(module, TensorQuantizer) or not module.is_enabled:
            continue
        if isinstance(module._calibrator, HistogramCalibrator):
            module.load_calib_amax("percentile", percentile=percentile)
        else:
            module.load_calib_amax()
        module.enable_quant()
        module.disable_calib()


def collect(model: nn.Module, modules: list[str]) -> dict[str, np.ndarray]:
    """Return what a deployed graph needs of every quantized layer."""
    found: dict[str, np.ndarray] = {}
    for name in modules:
        layer = model.get_submodule(name)
        scale = getattr(layer.input_quantizer, "_pre_quant_scale", None)
        found[f"{name}:input.amax"] = layer.input_quantizer.amax.float().numpy().reshape(())
        found[f"{name}:weight.amax"] = layer.weight_quantizer.amax.float().numpy().reshape(-1)
        found[f"{name}:weight"] = layer.weight.detach().float().numpy()
        if scale is not None:
            found[f"{name}:pre_quant_scale"] = scale.float().numpy().reshape(-1)
    return found


def peak_mb() -> float:
    """Return this process's largest resident memory; getrusage would also count its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Calibrate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", type=Path, help="JSON: model, samples, modules, weight_bits, method, batch")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    task = json.loads(args.task.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    samples = load_file(task["samples"])
    training = np.flatnonzero(samples["validation"] == 0)
    model = load_model(Path(task["model"]))

    def rows(index: np.ndarray) -> dict[str, np.ndarray]:
        return {
            k: v[index] for k, v in samples.items() if k in ("latents", "timesteps") or k.startswith("cond.")
        }

    def loop(network: nn.Module) -> None:
        for start in range(0, len(training), task["batch"]):
            call(network, rows(training[start : start + task["batch"]]))

    cpu = time.process_time()
    with torch.no_grad():
        quantize(model, task["method"], task["modules"], task["weight_bits"], loop)
    cpu = time.process_time() - cpu
    check = rows(training[:: max(1, len(training) // CHECKED_ROWS)][:CHECKED_ROWS])
    with torch.no_grad():
        output = call(model, check).numpy()
    tensors = collect(model, task["modules"])
    tensors |= {f"check.{k}": v for k, v in check.items()} | {"check.output": output}
    save_file({k: np.ascontiguousarray(v).reshape(v.shape) for k, v in tensors.items()}, args.out)
    import modelopt

    facts = {"cpu_s": cpu, "peak_mb": peak_mb(), "modelopt": modelopt.__version__}
    args.out.with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
