from __future__ import annotations

import pytest
import torch

from gacq_deploy.errors import BackendUnavailable
from gacq_deploy.models.devices import HOST, computing_on, device_class, find_device


def see(monkeypatch: pytest.MonkeyPatch, *cards: str, built: str | None = "12.8") -> None:
    """Let torch say that it sees these cards."""
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: cards[n])


def test_auto_takes_the_first_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, built=None)
    assert find_device("auto") == HOST
    see(monkeypatch, "A", "B")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == HOST
    assert [device_class(find_device(asked)) for asked in ("cpu", "cuda:1")] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("cards", "built", "asked", "said"),
    [
        ((), None, "cuda", "built without CUDA"),
        ((), "12.8", "cuda:0", "finds no GPU"),
        (("A", "B"), "12.8", "cuda:2", "cuda:0 A, cuda:1 B"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_what_is(
    monkeypatch: pytest.MonkeyPatch, cards: tuple[str, ...], built: str | None, asked: str, said: str
) -> None:
    see(monkeypatch, *cards, built=built)
    with pytest.raises(BackendUnavailable, match=said) as refused:
        find_device(asked)
    assert f"'{asked}'" in refused.value.message
    assert "--device" in str(refused.value.hint)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with computing_on(HOST, before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
