"""Latents to an image: the KL first stage with downsampling factor 8."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ldmkit.first_stages.kl import KL

from .measure import Setting, Table, absent, comparison, interleaved, relative_error
from .networks import draw, filled, first_stage, millions
from .unet_step import channels_last, compile_options

STOCK = "diffusers"


def run(setting: Setting) -> Iterator[Table]:
    """One table per image size."""
    shapes = {"small": ("tiny KL", [16]), "normal": ("KL f = 8", [256]), "large": ("KL f = 8", [256, 512])}
    name, sides = shapes[setting.size]
    network = filled(first_stage(name), setting)
    for side in sides:
        with torch.inference_mode():
            yield decode(f"{name} ({millions(network)}), {side} x {side} px", network, side, setting)


def decode(name: str, network: KL, side: int, setting: Setting) -> Table:
    """Every contender on the same latent and weights."""
    z = draw(setting, 1, network.channels, side // network.factor, side // network.factor)
    contenders: dict[str, Callable[[], Tensor]] = {"ldmkit": lambda: network.decode(z)}
    if setting.compiles:
        compiled = torch.compile(network.decode, **compile_options(setting))
        contenders["ldmkit compiled"] = lambda: compiled(z)
    if setting.opponent:
        contenders |= theirs(network, z, setting)
    base = STOCK if setting.opponent else "ldmkit"
    reference = contenders[base]()
    errors = {key: relative_error(call(), reference) for key, call in contenders.items() if key != base}
    times = interleaved(contenders, setting, warm_up=2 if setting.compiles else 0)
    title = f"decode, {name}, {setting.label}"
    return comparison(title, times, base, errors=errors, notes=absent(setting))


def theirs(network: KL, z: Tensor, setting: Setting) -> dict[str, Callable[[], Tensor]]:
    """diffusers: stock, and with its switches. Its pipelines divide by the scale before they decode."""
    from . import opponents

    def model() -> nn.Module:
        return opponents.sharing(opponents.first_stage(network), network)

    def call(model: nn.Module, latent: Tensor) -> Callable[[], Tensor]:
        return lambda: model.decode(latent / network.scale).sample

    calls = {
        STOCK: call(model(), z),
        "diffusers channels-last": call(opponents.tuned(model(), fused=False), channels_last(z)),
        "diffusers channels-last, fused": call(opponents.tuned(model(), fused=True), channels_last(z)),
    }
    if setting.compiles:
        compiled = opponents.tuned(model(), fused=True)
        compiled.decode = torch.compile(compiled.decode, **compile_options(setting))
        calls["diffusers channels-last, fused, compiled"] = call(compiled, channels_last(z))
    return calls


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["decode", *sys.argv[1:]]))
