"""Which faults are tried, what has to happen, and which test shows it? One row a case.

`docs/reliability.md` is made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NO_SERVER = "no server yet"
"""In the place of a test: what the row speaks of does not exist."""


@dataclass(frozen=True)
class Row:
    """One case of the matrix."""

    group: str
    name: str
    expected: str
    shown_by: str
    """Node id of the test, or why there is none."""

    @property
    def key(self) -> str:
        """Name among all rows."""
        return f"{self.group}: {self.name}"

    @property
    def tested(self) -> bool:
        """Whether a test shows it."""
        return self.shown_by != NO_SERVER

    @property
    def where(self) -> str:
        """The test, as a page shows it."""
        return f"`{self.shown_by.removeprefix('tests/')}`" if self.tested else self.shown_by


@dataclass(frozen=True)
class Group:
    """Cases of one kind."""

    title: str
    count: int
    """How many the matrix has."""


GROUPS: Mapping[str, Group] = {
    "A": Group("SIGKILL during `calibrate`", 30),
    "B": Group("SIGTERM and SIGINT", 10),
    "C": Group("A full disk", 30),
    "D": Group("Places and files that do not behave", 10),
    "E": Group("Two processes, one folder", 4),
    "F": Group("Damaged files", 48),
    "G": Group("Hostile ONNX files", 18),
    "H": Group("Other hostile files", 10),
    "I": Group("Scales, zero points and pairs of a graph", 14),
    "J": Group("Calibration data", 16),
    "K": Group("Numbers that learning meets", 10),
    "L": Group("The environment", 12),
    "M": Group("Requests", 16),
    "N": Group("Rows do not depend on their batch", 8),
}
_HERE = "tests/faults"
_UNIT = "tests/unit"
_BAD_INPUT = "tests/integration/test_bad_input.py::test_bad_input"
_INTERRUPTIONS = "tests/integration/test_interruptions.py"
_LINT = f"{_UNIT}/lint/test_lint.py::test_rule_finds_its_pattern"
_META = f"{_UNIT}/calibration/weighting/test_meta_learning.py"
_ENGINES = "tests/contract/test_engines.py::test_refuses_feeds_that_do_not_fit"
_PLANS = f"{_UNIT}/backends/trt/test_engine.py::test_a_plan_for_something_else_is_refused_before_it_is_loaded"


def _rows(group: str, expected: str, shown: Iterable[tuple[str, str]]) -> tuple[Row, ...]:
    return tuple(Row(group, name, expected, test) for name, test in shown)


def _own(group: str, expected: str, test: str, names: Sequence[str]) -> tuple[Row, ...]:
    """Rows of one parametrised test of this folder whose parameters are named after them."""
    return _rows(group, expected, ((name, f"{_HERE}/{test}[{name}]") for name in names))


RANDOM_KILLS = 20
"""Seeds of kills at random moments."""
KILLED_AT = (
    "samples half written",
    "samples written, not renamed",
    "samples without their record",
    "ranges half written",
    "ranges without their entry",
    "block half written",
    "block without its entry",
    "entry written, not renamed",
    "polish state without its entry",
    "artifact whole, not renamed",
)
"""Named points of a calibration, in the order that it comes to them."""
_A = (
    *_own(
        "A",
        "the next run ends on the same bytes as one that was never killed; nothing finished is lost",
        "test_a_kills.py::test_a_random",
        [f"random moment {seed}" for seed in range(RANDOM_KILLS)],
    ),
    *_own(
        "A",
        "the next run goes on; nothing finished is lost; the same bytes in the end",
        "test_a_kills.py::test_a_point",
        KILLED_AT,
    ),
)

_SIGNALS = ("SIGINT", "SIGTERM")
SIGNALLED = ("export", "build-trt", "bench")
"""Commands that are told to end while they work; `calibrate` has a test of its own."""
_STOP = "ends at once with 130 or 143, in words; earlier files are untouched; the same command goes on"
_SAVES = f"{_INTERRUPTIONS}::test_a_signal_saves_state_and_the_run_resumes"
_B = (
    *_rows("B", _STOP, [("calibrate, SIGINT", f"{_SAVES}[2-130]"), ("calibrate, SIGTERM", f"{_SAVES}[15-143]")]),
    *_rows("B", _STOP, [
        (f"{c}, {s}", f"{_HERE}/test_b_signals.py::test_b[{c}-{s}]") for c in SIGNALLED for s in _SIGNALS
    ]),
    *_rows("B", "requests in work are answered, then it ends", [(f"serve, {s}", NO_SERVER) for s in _SIGNALS]),
)  # fmt: skip

WRITTEN = ("weights", "scales", "finished step", "ONNX graph", "external data", "manifest", "samples")
"""Files that a full disk meets: of weights the probe stands for all large arrays, of scales the artifact's tensors."""
FULL_AT = ("0 %", "50 %", "99 %")
"""How much of a file finds room."""
_DISK = f"{_HERE}/test_c_full_disk.py::test_c"
_C = (
    *_rows("C", "exit 6 with the bytes that are missing; the earlier file is whole; nothing half written stays", [
        *((f"{file}, full at {share}", f"{_DISK}[{file}-{share}]") for file in WRITTEN for share in FULL_AT),
        *((f"report, full at {share}", f"{_DISK}_report[{share}]") for share in FULL_AT),
        *((f"engine, full at {share}", f"{_DISK}_engine[{share}]") for share in FULL_AT),
    ]),
    *_rows("C", "as the others", [(f"server's model folder, full at {share}", NO_SERVER) for share in FULL_AT]),
)  # fmt: skip

_PLACES = f"{_HERE}/test_d_places.py"
_REFUSED_PLACE = "exit 2 with the path and what the system says; nothing half written stays"
_D = (
    *_rows("D", _REFUSED_PLACE, [
        ("folder that is not writable", f"{_PLACES}::test_d_a_place_that_takes_no_file[13]"),
        ("read-only file system", f"{_PLACES}::test_d_a_place_that_takes_no_file[30]"),
        ("rename across file systems", f"{_PLACES}::test_d_a_place_that_takes_no_file[18]"),
        ("folder in the place of a file", f"{_PLACES}::test_d_refused[a file that is a folder]"),
        ("path of 5,000 bytes", f"{_PLACES}::test_d_refused[a path of 5,000 bytes]"),
    ]),
    *_rows("D", "exit 5 naming the file", [
        ("file that vanishes between check and use", f"{_PLACES}::test_d_a_file_that_is_gone_between_check_and_use"),
        ("no more files may be open", f"{_PLACES}::test_d_no_more_files_may_be_open"),
    ]),
    *_rows("D", "it works", [
        ("path with spaces", f"{_PLACES}::test_d_a_run_of_any_name_works[two words]"),
        ("dangling link in the place of the output",
         f"{_PLACES}::test_d_a_dangling_link_in_the_place_of_the_output_is_replaced"),
        ("times in the future", f"{_PLACES}::test_d_times_in_the_future_change_nothing"),
    ]),
)  # fmt: skip

_IN_USE = f"{_INTERRUPTIONS}::test_a_directory_in_use_is_refused"
_E = (
    *_rows("E", "the second is refused at once (6) and names the process", [
        ("the same command twice", f"{_IN_USE}[calibrate -r {{recipe}} -o {{run}}]"),
        ("export beside a calibration", f"{_IN_USE}[export --onnx {{run}}]"),
    ]),
    *_rows("E", "it is taken over, and what the dead process left is removed", [
        ("lock of a dead process", f"{_INTERRUPTIONS}::test_the_lock_of_a_dead_process_is_taken_over"),
    ]),
    *_rows("E", "exit 6 naming the file system, and no process is blamed", [
        ("file system without locks",
         f"{_UNIT}/storage/test_files.py::test_a_file_system_without_locks_is_named_and_no_process_blamed"),
    ]),
)  # fmt: skip

DAMAGED = ("tensors", "artifact manifest", "export manifest", "graph", "external data", "engine")
"""Kinds of file."""
DAMAGES = (
    "empty", "half", "all but 1 %", "random", "a bit of the head", "a bit of the body", "another version", "foreign"
)  # fmt: skip
"""Ways of damage."""
_F = _rows(
    "F",
    "exit 5 before a parser sees it, with file and remedy",
    [
        (f"{kind}: {damage}", f"{_HERE}/test_f_damaged_files.py::test_f[{kind}-{damage}]")
        for kind in DAMAGED
        for damage in DAMAGES
    ],
)

HOSTILE_GRAPHS = (
    "parent folder", "parent folder in disguise", "absolute path", "link", "link to a folder", "hard link",
    "missing file", "offset beyond the end", "length beyond the end", "negative offset", "length of another shape",
    "folder in the place of a file", "huge dimensions", "nested 10^5 deep", "custom domain", "names given twice",
    "cycle", "zero byte in the location",
)  # fmt: skip
"""What a file of somebody else may try."""
_G = _own(
    "G",
    "exit 5 with tensor or node; no byte outside its folder is read",
    "test_g_hostile_graphs.py::test_g",
    HOSTILE_GRAPHS,
)

HOSTILE_FILES = (
    "pickle named .safetensors", "pickle named .bin", "npz with a pickled object", "manifest that names a path outside",
    "YAML tag that calls a function", "YAML of ten million items", "model with code of its own",
)  # fmt: skip
"""What else a file of somebody else may try."""
_NOTHING_RUNS = "refused with the file (2 or 5); nothing of it runs"
_H = (
    *_own("H", _NOTHING_RUNS, "test_h_hostile_files.py::test_h", HOSTILE_FILES),
    *_rows("H", "refused before TensorRT sees it, with what it was built for", [
        ("plan of another TensorRT", f"{_PLANS}[version]"),
        ("plan of another GPU", f"{_PLANS}[GPU]"),
        ("version-compatible plan without permission", f"{_PLANS}[host code]"),
    ]),
)  # fmt: skip

_MALFORMED = f"{_UNIT}/graph/test_wellformed.py::test_a_malformed_graph_is_refused_by_name"
_I = (
    *_rows("I", "the rule names the node; `lint` ends with 3, the export and the builder refuse it", [
        ("scale 0", f"{_LINT}[scale-not-positive-ort-cpu-zero]"),
        ("scale NaN", f"{_LINT}[scale-not-finite-tensorrt-nan]"),
        ("scale Inf", f"{_LINT}[scale-not-finite-ort-cpu-inf]"),
        ("scale negative", f"{_LINT}[scale-not-positive-openvino-negative]"),
        ("scale denormal", f"{_LINT}[scale-denormal-tensorrt]"),
        ("zero point out of place", f"{_LINT}[zero-point-not-zero-tensorrt]"),
        ("zero point of another type", f"{_LINT}[zero-point-type-ort-cpu]"),
        ("as many scales as there are no channels", f"{_LINT}[channel-count-ort-cpu]"),
        ("scales along another axis", f"{_LINT}[weight-axis-tensorrt-conv]"),
        ("quantizer without dequantizer", f"{_LINT}[orphan-quantize-tensorrt]"),
        ("dequantizer without codes", f"{_LINT}[orphan-dequantize-ort-cpu-no-codes]"),
        ("operator set out of range", f"{_LINT}[opset-refused-ort-cpu]"),
    ]),
    *_rows("I", "exit 5 naming the node", [("scale missing", f"{_MALFORMED}[scale from nowhere]")]),
    *_rows("I", "parity catches it (3)", [
        ("weight scales of two layers exchanged",
         "tests/contract/test_parity_catches.py::test_a_corrupt_file_is_caught[weight scales exchanged]"),
    ]),
)  # fmt: skip

SAMPLES = (
    "channels of another model", "size of another model", "integers for latents", "one axis too few",
    "timestep outside of the model's", "no timesteps", "no conditioning",
)  # fmt: skip
"""How a file of samples may not fit the model."""
_J = (
    *_rows("J", "exit 2 or 5 before any work, naming the tensor", [
        ("no samples", f"{_BAD_INPUT}[samples-none]"),
        ("row with NaN", f"{_BAD_INPUT}[samples-nan]"),
        ("row with Inf", f"{_UNIT}/samples/test_calibration_set.py::test_a_row_that_is_not_finite_is_named[inf]"),
        ("mixed shapes", f"{_BAD_INPUT}[samples-uneven]"),
    ]),
    *_own("J", "exit 2 or 5 before any work, naming the tensor", "test_j_samples.py::test_j", SAMPLES),
    *_rows("J", "weight 1: it is learned from", [("one sample", f"{_META}::test_one_sample_has_weight_one")]),
    *_rows("J", "equal weights", [
        ("identical samples", f"{_META}::test_identical_samples_stay_uniform[gac]"),
        ("duplicates", f"{_META}::test_duplicates_get_equal_weights[gac]"),
    ]),
    *_rows("J", "scales that overflow nothing", [
        ("constant samples", f"{_HERE}/test_j_samples.py::test_j_constant_samples_are_learned_from"),
    ]),
    *_rows("J", "written and read row by row: memory does not grow", [
        ("a million samples",
         f"{_HERE}/test_j_samples.py::test_j_a_million_samples_are_written_in_the_memory_of_a_few"),
    ]),
)  # fmt: skip

_RECONSTRUCTION = f"{_UNIT}/calibration/test_reconstruction.py"
_WEIGHTS = f"{_UNIT}/calibration/weighting/test_sample_weights.py::test_weights_that_mean_nothing_are_refused"
_K = (
    *_rows("K", "stops with block and step; what was finished is kept", [
        ("NaN in a block's loss",
         f"{_RECONSTRUCTION}::test_a_loss_that_is_not_finite_stops_with_the_blocks_name_and_the_old_state"),
        ("exploding polish",
         f"{_UNIT}/calibration/test_polish.py::test_a_loss_that_explodes_names_the_step_and_keeps_the_last_state"),
    ]),
    *_rows("K", "undone, and the record says so", [
        ("reconstruction that ends worse", f"{_RECONSTRUCTION}::test_a_result_worse_than_nearest_rounding_is_undone"),
    ]),
    *_rows("K", "refused with the block", [("sample weights of 0", f"{_WEIGHTS}[raw2]")]),
    *_rows("K", "equal weights, and the report says why", [
        ("gradients of zero", f"{_META}::test_gradients_of_zero_stay_uniform[gac]"),
    ]),
    *_rows("K", "weights that are finite, with mean one", [
        ("timestep group of one sample", f"{_HERE}/test_k_numbers.py::test_k_a_group_of_one_sample[gac]"),
    ]),
    *_rows("K", "the look-ahead is shortened", [
        ("inner learning rate far too large", f"{_META}::test_an_overshooting_look_ahead_is_shortened"),
    ]),
    *_rows("K", "exit 2 with the key", [
        ("inner learning rate 0", f"{_HERE}/test_k_numbers.py::test_k_a_rate_of_0_is_refused"),
    ]),
    *_rows("K", "a scale that overflows nothing", [
        ("layer without a range",
         f"{_UNIT}/quant/test_ranges.py::test_dead_channels_get_a_scale_that_overflows_nothing[minmax]"),
    ]),
    *_rows("K", "it stays float32, and the record names it", [
        ("overflow of float16", f"{_UNIT}/build_trt/float16/test_convert.py::test_weight_beyond_the_largest_half"),
    ]),
)  # fmt: skip

PROCESS = ("locale that there is not", "time zone that there is not", "umask 077")
"""What a process may inherit."""
_MISSING = "exit 4 with the line that installs it"
_L = (
    *_rows("L", _MISSING, [
        ("no ONNX Runtime", f"{_BAD_INPUT}[no-onnxruntime]"),
        ("both wheels of ONNX Runtime", f"{_BAD_INPUT}[both-wheels]"),
        ("CUDA asked of an ONNX Runtime without it", f"{_BAD_INPUT}[cuda-without-gpu]"),
        ("no TensorRT", f"{_UNIT}/build_trt/test_compiler.py::test_a_missing_library_names_both_installs"),
        ("TensorRT too old",
         f"{_UNIT}/build_trt/test_compiler.py::test_a_library_that_does_not_serve_is_missing[__version__ = '10.1.0']"),
        ("PyTorch too old", f"{_BAD_INPUT}[torch-too-old]"),
        ("no GPU", f"{_UNIT}/backends/trt/test_engine.py::test_without_a_gpu_nothing_of_tensorrt_is_touched"),
    ]),
    *_rows("L", "exit 6 with what there is and what was asked for", [
        ("too little memory", f"{_INTERRUPTIONS}::test_too_little_memory_is_said_and_not_a_traceback"),
    ]),
    *_rows("L", "exit 2: fetch it first, or name a folder", [("hub offline", f"{_BAD_INPUT}[hub-offline]")]),
    *_own("L", "it works, with the same bytes", "test_l_environment.py::test_l", PROCESS),
)  # fmt: skip

_REFUSED_REQUEST = "refused in words; the engine answers the next request"
_M = (
    *_rows("M", _REFUSED_REQUEST, [
        ("wrong shape", f"{_ENGINES}[ort-cpu-wrong channels]"),
        ("wrong type", f"{_ENGINES}[ort-cpu-float64 sample]"),
        ("wrong name", f"{_ENGINES}[ort-cpu-unknown input]"),
        ("batch 0", f"{_ENGINES}[ort-cpu-empty batch]"),
        ("batch beyond the profile", f"{_UNIT}/backends/trt/test_engine.py::test_no_profile_names_the_ranges"),
        ("NaN in a latent", f"{_ENGINES}[ort-cpu-NaN]"),
    ]),
    *_rows("M", "exit 2 with the values that are taken", [
        ("0 steps", f"{_BAD_INPUT}[no-steps]"),
        ("a million steps", f"{_BAD_INPUT}[too-many-steps]"),
        ("unknown scheduler", f"{_BAD_INPUT}[scheduler-unknown]"),
    ]),
    *_rows("M", "an error of the engine that names step and seed", [
        ("engine that fails at a step",
         f"{_UNIT}/sampling/test_loop.py::test_an_output_that_is_not_finite_names_step_timestep_and_seed[seeds0]"),
    ]),
    *_rows("M", "that request alone fails", [
        (name, NO_SERVER) for name in (
            "cancelled within a step", "deadline passed", "queue full", "slow client", "replica killed", "stub killed"
        )
    ]),
)  # fmt: skip

BATCHES = tuple(range(1, 9))
"""Rows that share a call."""
_N = _rows(
    "N",
    "bit for bit what each row gives alone, in ONNX Runtime and in OpenVINO",
    [
        (
            f"batch of {size}: one timestep, mixed timesteps, mixed schedulers",
            f"{_HERE}/test_n_batches.py::test_n[ort-cpu-{size}]",
        )
        for size in BATCHES
    ],
)

ROWS: tuple[Row, ...] = (*_A, *_B, *_C, *_D, *_E, *_F, *_G, *_H, *_I, *_J, *_K, *_L, *_M, *_N)
"""Every case."""
