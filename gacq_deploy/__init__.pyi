# The public names, once: type checkers read them here, and the package imports each when it is first used.

__version__: str

# the chain, in its order
from .recipe.load import load_recipe as load_recipe
from .run_directory import RunDirectory as RunDirectory
from .calibration.stage import calibrate as calibrate
from .export.stage import export_onnx as export_onnx
from .build_trt.stage import build_engines as build_engines
from .parity.stage import check_parity as check_parity
from .bench.stage import run_bench as run_bench
from .sign.stage import sign_run as sign_run
from .generate.stage import make_images as make_images
from .diffusers.load import load_denoiser as load_denoiser
from .generate.grid import write_grid as write_grid
from .compare.stage import compare_runs as compare_runs
from .compare.page import write_compare_page as write_compare_page
from .generate.sheet import write_comparison as write_comparison

# what they take and return
from .recipe.sections import Recipe as Recipe
from .artifact.artifact import CalibrationArtifact as CalibrationArtifact
from .export.record import ExportRecord as ExportRecord
from .build_trt.stage import BuildRequest as BuildRequest
from .build_trt.stage import BuiltEngine as BuiltEngine
from .parity.report import FailedGate as FailedGate
from .parity.report import ParityReport as ParityReport
from .bench.measure import BenchSettings as BenchSettings
from .bench.report import BenchReport as BenchReport
from .origin.signature import RunSignature as RunSignature
from .generate.request import GeneratedImages as GeneratedImages
from .generate.request import ImageRequest as ImageRequest
from .compare.stage import RunComparison as RunComparison
from .diffusers.denoiser import EngineDenoiser as EngineDenoiser
from .engines.catalogue import EngineRecord as EngineRecord
from .engines.catalogue import engine_named as engine_named
from .engines.catalogue import known_engines as known_engines

# what every verb takes beside, and raises
from .progress import LoggingReporter as LoggingReporter
from .progress import Reporter as Reporter
from .errors import GacqError as GacqError
