"""What can happen to the bytes of a file? One to four random changes, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

Change = Callable[[Random, bytearray, Sequence[bytes]], None]
_ODD = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b]0;x\x07", b"\xed\xa0\x80", b"\xc2\x85", b"\xe2\x80\xa8", b"\r",
    b"\n",    b"\t", b'"', b"'", b"{", b"[", b"]", b",", b":", b"- ", b"&a ", b"*a", b"!!x ", b"<<: ", b"#", b"|", b"=",
    b"\\u0000",
)  # fmt: skip
_SIZES = (1, 1, 2, 4, 8, 64, 1000)


def changed_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return a file's bytes, changed; ``others`` are files that parts may come from."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(CHANGES)(rng, changed, others)
    return bytes(changed)


def _at(rng: Random, data: bytearray) -> int:
    return rng.randrange(len(data) + 1)


def flip_bit(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_byte(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def cut_out(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _at(rng, data)
    del data[at : at + rng.choice(_SIZES)]


def cut_off(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[_at(rng, data) :]


def insert_odd(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _at(rng, data)
    data[at:at] = rng.choice(_ODD)


def insert_noise(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _at(rng, data)
    data[at:at] = rng.randbytes(rng.choice(_SIZES))


def repeat_part(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _at(rng, data)
    data[at:at] = data[at : at + rng.choice(_SIZES)] * rng.choice((1, 1, 2, 100))


def splice(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    """The head of this file and the tail of another."""
    other = rng.choice(others)
    data[_at(rng, data) :] = other[rng.randrange(len(other) + 1) :]


def move_part(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    start = _at(rng, data)
    size = rng.choice(_SIZES)
    part = data[start : start + size]
    del data[start : start + size]
    at = _at(rng, data)
    data[at:at] = part


CHANGES: tuple[Change, ...] = (
    flip_bit, set_byte, cut_out, cut_off, insert_odd, insert_noise, repeat_part, splice, move_part,
)  # fmt: skip
