"""A sample of 20 DDIM steps with classifier-free guidance at scale 7.5, from a context that is already computed.

diffusers runs the loop of its own pipelines: both conditionings in one batch, guidance, one step of the scheduler. Both
visit the same levels from the same noise, so the latents agree too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ldmkit.backbones.unet import UNet
from ldmkit.conditioners.precomputed import Precomputed
from ldmkit.first_stages.pixel import Pixel
from ldmkit.guidance import CFG
from ldmkit.model import LatentDiffusion
from ldmkit.process import VP

from .measure import Setting, Table, absent, comparison, interleaved, relative_error
from .networks import TOKENS, draw, filled, millions, twin, unet
from .unet_step import channels_last, compile_options

STOCK = "diffusers"
SCALE = 7.5
STEPS = 20
BETAS = {"start": 0.00085, "end": 0.012}


def run(setting: Setting) -> Iterator[Table]:
    """One table per shape."""
    normal = [("SD 1 UNet at half width", 16)]
    shapes = {"small": [("tiny UNet", 8)], "normal": normal, "large": [*normal, ("SD 1 UNet at half width", 64)]}
    for name, side in shapes[setting.size]:
        network = filled(unet(name), setting)
        yield sample(f"{name} ({millions(network)}), 1 x 4 x {side} x {side}", network, side, setting)


def sample(name: str, network: UNet, side: int, setting: Setting) -> Table:
    """Every contender from the same noise."""
    steps = 2 if setting.size == "small" else STEPS
    context = draw(setting, 1, TOKENS, network.accepts["context"])
    start = draw(setting, 1, network.channels, side, side).float()
    contenders = ours(network, context, start, steps, setting)
    if setting.opponent:
        contenders |= theirs(network, context, start, steps, setting)
    base = STOCK if setting.opponent else "ldmkit"
    reference = contenders[base]()
    errors = {key: relative_error(call(), reference) for key, call in contenders.items() if key != base}
    times = interleaved(contenders, setting, warm_up=1 if setting.compiles else 0)
    title = f"guided sample, {steps} DDIM steps, {name}, {setting.label}"
    return comparison(title, times, base, unit=1, unit_name="s", errors=errors, notes=absent(setting))


def ours(
    network: UNet, context: Tensor, start: Tensor, steps: int, setting: Setting
) -> dict[str, Callable[[], Tensor]]:
    """ldmkit: ``LatentDiffusion.sample``."""

    def call(backbone: UNet) -> Callable[[], Tensor]:
        model = LatentDiffusion(
            first_stage=Pixel(channels=network.channels),
            backbone=backbone,
            process=VP(**BETAS),
            conditioner=Precomputed("context", "context", context.shape[-1]),
        )
        size = (start.shape[2], start.shape[3])
        return lambda: model.sample({"context": context}, size=size, levels=steps, guidance=CFG(SCALE), start=start)

    calls = {"ldmkit": call(network)}
    if setting.compiles:
        compiled = twin(network)
        compiled.compile(**compile_options(setting))
        calls["ldmkit compiled"] = call(compiled)
    return calls


def theirs(
    network: UNet, context: Tensor, start: Tensor, steps: int, setting: Setting
) -> dict[str, Callable[[], Tensor]]:
    """diffusers: stock, and with its switches."""
    from . import opponents

    def model() -> nn.Module:
        return opponents.sharing(opponents.unet(network), network)

    both = torch.cat([torch.zeros_like(context), context])
    start = start.to(setting.dtype)
    last = channels_last(start)
    calls = {
        STOCK: loop(model(), both, start, steps),
        "diffusers channels-last": loop(opponents.tuned(model(), fused=False), both, last, steps),
    }
    if setting.compiles:
        compiled = opponents.tuned(model(), fused=True)
        compiled.compile(**compile_options(setting))
        calls["diffusers channels-last, fused, compiled"] = loop(compiled, both, last, steps)
    return calls


def loop(network: nn.Module, both: Tensor, start: Tensor, steps: int) -> Callable[[], Tensor]:
    """The loop of a diffusers pipeline."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=BETAS["start"],
        beta_end=BETAS["end"],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )

    @torch.no_grad()
    def call() -> Tensor:
        scheduler.set_timesteps(steps, device=start.device)
        x = start
        for t in scheduler.timesteps:
            pair = scheduler.scale_model_input(torch.cat([x] * 2), t)
            eps = network(pair, t, encoder_hidden_states=both, return_dict=False)[0]
            without, given = eps.chunk(2)
            x = scheduler.step(without + SCALE * (given - without), t, x, return_dict=False)[0]
        return x

    return call


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["guided_sample", *sys.argv[1:]]))
