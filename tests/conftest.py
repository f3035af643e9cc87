"""What does a test need that a machine may lack? Tests marked `rtx` need TensorRT-RTX, the real compiler."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

RTX_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `rtx` where the library is not installed; where CI is set, that is a failure."""
    if item.get_closest_marker("rtx") is None or any(find_spec(name) for name in RTX_MODULES):
        return
    reason = "TensorRT-RTX is not installed: pip install 'gacq-deploy[rtx]'"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
