"""A family nobody prepared for: a denoiser with a signature of its own, in a pipeline of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

WIDTH, WORDS, SIZE, CHANNELS = 16, 5, 8, 3


class Mixer(nn.Module):
    """A block that returns the picture and the words, and takes both."""

    def __init__(self, variant: str = "") -> None:
        super().__init__()
        self.picture = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.words = nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.variant = variant

    def forward(self, streams: dict[str, Tensor], place: Tensor) -> tuple[Tensor, Tensor]:
        heard = self.gate(streams["words"]).mean(1)[:, :, None, None]
        picture = streams["picture"] + torch.tanh(self.picture(streams["picture"] + place)) * heard
        return picture, streams["words"] + torch.tanh(self.words(streams["words"]))


class Painter(nn.Module):
    """Predicts noise from keyword arguments that no model of diffusers has, and answers with a dict."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__()
        self.flaw = flaw
        self.enter = nn.Conv2d(CHANNELS + (flaw == "more channels"), WIDTH, 3, padding=1)
        self.clock = nn.Linear(1, WIDTH)
        self.mixers = nn.ModuleList([Mixer(), Mixer()])
        self.leave = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)

    def forward(
        self, *, canvas: Tensor, hour: Tensor, brief: dict[str, Any], grid: Tensor
    ) -> dict[str, Tensor]:
        if self.flaw == "one hour":
            hour = hour.flatten()[:1]
        clock = self.clock(hour.reshape(-1, 1).to(canvas.dtype) / 1000)[:, :, None, None]
        picture, words = self.enter(canvas) + clock, brief["words"] * brief["loudness"][:, None, None]
        for mixer in self.mixers:
            picture, words = mixer({"picture": picture, "words": words}, grid)
        if self.flaw != "unheard":
            picture = picture + words.mean(1)[:, :, None, None]
        return {"noise": self.leave(picture), "ignored": words}


class PainterPipeline(DiffusionPipeline):  # type: ignore[misc] # untyped
    """Classifier-free guidance with interleaved rows, the prompt's before the empty one's."""

    def __init__(self, painter: Painter, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(painter=painter, scheduler=scheduler)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return words ``[N, WORDS, WIDTH]`` that depend on every letter."""
        rows = [torch.Generator().manual_seed(sum(map(ord, prompt))) for prompt in prompts]
        return torch.stack([torch.randn((WORDS, WIDTH), generator=g) for g in rows])

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence[str],
        num_inference_steps: int = 4,
        generator: Any = None,
        guidance_scale: float = 3.0,
        output_type: str = "np",
    ) -> Tensor:
        both = torch.stack([self.encode(prompt), self.encode([""] * len(prompt))], 1).flatten(0, 1)
        x = torch.stack([torch.randn((CHANNELS, SIZE, SIZE), generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            canvas = x.repeat_interleave(2, 0)
            if self.painter.flaw == "more channels":
                canvas = torch.cat([canvas, canvas[:, :1]], 1)
            brief: dict[str, Any] = {"words": both, "loudness": torch.full((len(canvas),), 0.5), "tone": None}
            if self.painter.flaw == "changing":
                brief["loudness"] = brief["loudness"] * (1 + t / 1000)
            if self.painter.flaw == "an object":
                brief["tone"] = object()
            grid = torch.linspace(-1, 1, SIZE).repeat(SIZE, 1)
            noise = self.painter(canvas=canvas, hour=t, brief=brief, grid=grid)["noise"]
            towards, away = noise[::2], noise[1::2]
            x = self.scheduler.step(away + guidance_scale * (towards - away), t, x).prev_sample
        return x


def make_pipeline(flaw: str = "") -> PainterPipeline:
    """Return the pipeline with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        painter = Painter(flaw)
    return PainterPipeline(painter.eval(), DDIMScheduler(clip_sample=False))


def make_unheard() -> PainterPipeline:
    """Return the pipeline of a painter that drops its last mixer's words."""
    return make_pipeline("unheard")
