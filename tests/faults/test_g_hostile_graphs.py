"""Group G: an ONNX file of somebody else is refused by name, and not one byte outside its folder is read."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import GacqError
from tests.faults.matrix import HOSTILE_GRAPHS
from tests.support.graphs.graph_sketch import CODES, Sketch
from tests.support.programs.commands import invoke

WEIGHT = "y.w.codes"
IN_OPEN, IN_ACCESS = 0x20, 0x1
Place = dict[str, str | int]
Trick = Callable[[Path], Place | ModelProto | bytes]
"""What lies beside the graph is made in its folder; what it says of its weight, the whole model, or the whole file."""


def _graph() -> Sketch:
    sketch = Sketch()
    sketch.conv(sketch.pair("x", "a"))
    return sketch


def _outside(place: Place) -> ModelProto:
    """Return a graph whose weight lies in another file."""
    model = _graph().model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == WEIGHT)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        weight.external_data.add(key=key, value=str(value))
    return model


def _linked(make: Callable[[Path, Path], None]) -> Trick:
    def trick(folder: Path) -> Place:
        make(folder / "w.data", folder.parent / "secret")
        return {"location": "w.data"}

    return trick


def _linked_folder(folder: Path) -> Place:
    (folder / "sub").symlink_to(folder.parent)
    return {"location": "sub/secret"}


def _beside(**place: str | int) -> Trick:
    def trick(folder: Path) -> Place:
        (folder / "w.data").write_bytes(CODES.tobytes())
        return {"location": "w.data", **place}

    return trick


def _folder_as_file(folder: Path) -> Place:
    (folder / "w.data").mkdir()
    return {"location": "w.data"}


def _huge(_: Path) -> ModelProto:
    model = _graph().model()
    model.graph.initializer[0].dims[:] = [2**40, 2**40]
    return model


def _deep(_: Path) -> bytes:
    """Each graph lies in an attribute of the node of another, field by field as protobuf writes them."""
    size, heads = 0, []
    for field in (6, 5, 1) * 100_000 + (
        7,
    ):  # graph of an attribute, attribute of a node, node of a graph; graph
        heads.append(bytes([field << 3 | 2]) + _varint(size))
        size += len(heads[-1])
    return b"".join(reversed(heads))


def _varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])


def _foreign(_: Path) -> ModelProto:
    sketch = _graph()
    sketch.node("Swirl", ["y"], "z", domain="org.example")
    return sketch.model()


def _twice(_: Path) -> ModelProto:
    model = _graph().model()
    model.graph.initializer.append(model.graph.initializer[0])
    return model


def _cycle(_: Path) -> ModelProto:
    model = _graph().model()
    model.graph.node.append(helper.make_node("Identity", ["p"], ["q"], "one"))
    model.graph.node.append(helper.make_node("Identity", ["q"], ["p"], "other"))
    return model


TRICKS: dict[str, tuple[Trick, str]] = {
    "parent folder": (lambda _: {"location": "../secret"}, "'../secret' leads outside"),
    "parent folder in disguise": (lambda _: {"location": "a/../../secret"}, "leads outside"),
    "absolute path": (lambda folder: {"location": str(folder.parent / "secret")}, "leads outside"),
    "link": (_linked(lambda link, secret: link.symlink_to(secret)), "is a link"),
    "link to a folder": (_linked_folder, "is a link"),
    "hard link": (_linked(lambda link, secret: link.hardlink_to(secret)), "2 hard links"),
    "missing file": (lambda _: {"location": "w.data"}, "is missing"),
    "offset beyond the end": (_beside(offset=10**6, length=576), f"tensor '{WEIGHT}' ends at 1000576"),
    "length beyond the end": (_beside(length=577), f"tensor '{WEIGHT}' ends at 577"),
    "negative offset": (_beside(offset=-4), f"tensor '{WEIGHT}' has a malformed external position"),
    "length of another shape": (_beside(length=64), f"'{WEIGHT}', which node 'y.w/DQ' (DequantizeLinear) reads"),
    "folder in the place of a file": (_folder_as_file, "is missing or not a regular file"),
    "huge dimensions": (_huge, "has the shape [1099511627776, 1099511627776]"),
    "nested 10^5 deep": (_deep, "truncated or not an ONNX model"),
    "custom domain": (_foreign, "'org.example', of which no operator set is imported"),
    "names given twice": (_twice, "Two stored tensors are called"),
    "cycle": (_cycle, "cycle with"),
    "zero byte in the location": (lambda _: {"location": "w\0.data"}, f"tensor '{WEIGHT}'"),
}  # fmt: skip


@contextmanager
def _unread(path: Path) -> Iterator[None]:
    """Fail if anybody opens or reads the file inside the block, from Python or not."""
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN | IN_ACCESS) > 0
    try:
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)


@pytest.mark.parametrize("name", HOSTILE_GRAPHS)
def test_g(name: str, tmp_path: Path) -> None:
    trick, says = TRICKS[name]
    folder = tmp_path / "theirs"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(CODES.tobytes())
    made = trick(folder)
    model = _outside(made) if isinstance(made, dict) else made
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with _unread(secret):
        done = invoke(["lint", str(path), "--json"])
        if isinstance(made, dict):  # an engine of ONNX Runtime would read the file itself
            with pytest.raises(GacqError):
                open_engine("ort-cpu", path, threads=1)
    assert done.exit_code == 5, done.output
    error = json.loads(done.stdout)["error"]
    assert says in error["message"], error
    assert error["hint"]


def test_a_reader_of_the_secret_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"of mine")
    with pytest.raises(pytest.fail.Exception), _unread(tmp_path / "secret"):
        (tmp_path / "secret").read_bytes()
