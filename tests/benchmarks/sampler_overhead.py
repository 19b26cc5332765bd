"""What a sampler costs beside its network: microseconds per step when the network costs nothing, at 1 x 4 x 64 x 64.

A call is everything around the network: laying out the levels, the steps, the noise. A scheduler of diffusers gets eps
and makes x0 of it inside its step, where a sampler of ldmkit gets x0. So there are three tables: the sampler alone,
with ldmkit's denoiser making x0 of eps, and with classifier-free guidance on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoise, Denoiser
from ldmkit.guidance import CFG
from ldmkit.noise import Noise
from ldmkit.process import VP, Levels
from ldmkit.samplers.contract import Sampler
from ldmkit.samplers.ddim import DDIM
from ldmkit.samplers.ddpm import DDPM
from ldmkit.samplers.plms import PLMS

from .guided_sample import BETAS, SCALE
from .measure import Call, Setting, Table, absent, interleaved
from .networks import draw

STEPS = 50
PROCESS = VP(**BETAS)
SAMPLERS: Mapping[str, Sampler] = {"ddim": DDIM(), "ddim, eta = 1": DDIM(eta=1.0), "ddpm": DDPM(), "plms": PLMS()}


class Free(nn.Module):
    """A backbone that costs nothing: its prediction is the state."""

    channels = 4
    accepts: Mapping[str, int] = {"vector": 1}
    multiple = 1

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """x."""
        return x


def run(setting: Setting) -> Iterator[Table]:
    """The sampler alone, with the denoiser, with guidance."""
    side = 8 if setting.size == "small" else 64
    x = draw(setting, 1, 4, side, side).float()
    for title, denoise, guided in (
        ("the sampler alone: x0 is given", given, False),
        ("with the denoiser: eps is given", unguided, False),
        ("with guidance: eps of both halves is given", doubled, True),
    ):
        with torch.inference_mode():
            yield table(f"sampler overhead, {title}, {STEPS} steps, {setting.device}", denoise, guided, x, setting)


def table(title: str, denoise: Callable[[Levels], Denoise], guided: bool, x: Tensor, setting: Setting) -> Table:
    """Microseconds per step of every sampler."""
    setting = replace(setting, rounds=4 * setting.rounds)
    rows: dict[str, list[float | None]] = {}
    notes = absent(setting)
    for name, sampler in SAMPLERS.items():
        contenders = {"ldmkit": ours(sampler, denoise, x)}
        if setting.opponent:
            contenders["diffusers"] = theirs(name, guided, x)
        times = interleaved(contenders, setting, warm_up=2)
        own, other = (times.get(key) for key in ("ldmkit", "diffusers"))
        micro = [median(t) / STEPS * 1e6 if t else None for t in (own, other)]
        rows[name] = [*micro, median(o / t for o, t in zip(other, own, strict=True)) if other else None]
    return Table(title, ("ldmkit us", "diffusers us", "x diffusers"), rows, notes)


def ours(sampler: Sampler, denoise: Callable[[Levels], Denoise], x: Tensor) -> Call:
    """A sampler of ldmkit over 50 levels."""

    def call() -> Tensor:
        levels = PROCESS.levels(STEPS)
        return sampler(denoise(levels), x, levels, Noise((0,)))

    return call


def given(levels: Levels) -> Denoise:
    """x0 is the state."""
    return lambda x, level: x


def unguided(levels: Levels) -> Denoise:
    """eps is the state."""
    return Denoiser(Free(), PROCESS).bind(Conditioning(vector=torch.zeros(1, 1)), levels)


def doubled(levels: Levels) -> Denoise:
    """eps is the state, twice, and guidance joins the two."""
    denoiser = Denoiser(Free(), PROCESS)
    cond = Conditioning(vector=torch.zeros(1, 1))
    return CFG(SCALE)(lambda c: denoiser.bind(c, levels), cond, cond, levels)


def theirs(name: str, guided: bool, x: Tensor) -> Call:
    """A scheduler of diffusers over 50 timesteps, as its pipelines call it."""
    from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

    options = {"beta_start": BETAS["start"], "beta_end": BETAS["end"], "beta_schedule": "scaled_linear"}
    scheduler = {
        "ddim": lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **options),
        "ddpm": lambda: DDPMScheduler(clip_sample=False, **options),
        "plms": lambda: PNDMScheduler(skip_prk_steps=True, steps_offset=1, **options),
    }[name.partition(",")[0]]()
    generator = torch.Generator(x.device).manual_seed(0)
    extra: dict[str, object] = {} if name == "plms" else {"generator": generator}
    if "eta" in name:
        extra["eta"] = 1.0

    def call() -> Tensor:
        scheduler.set_timesteps(STEPS, device=x.device)
        state = x
        for t in scheduler.timesteps:
            eps = scheduler.scale_model_input(torch.cat([state] * 2) if guided else state, t)
            if guided:
                without, given = eps.chunk(2)
                eps = without + SCALE * (given - without)
            state = scheduler.step(eps, t, state, **extra, return_dict=False)[0]
        return state

    return call


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["sampler_overhead", *sys.argv[1:]]))
