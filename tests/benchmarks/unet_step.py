"""One step of the UNet for a guided pair, at the shapes of Stable Diffusion 1.

``bound`` is what a sampler of ldmkit calls: keys and values of the context and the embeddings of all times are computed
by ``bind``, once per sample. diffusers computes them at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ldmkit.backbones.unet import UNet

from .measure import Setting, Table, absent, comparison, interleaved, relative_error
from .networks import filled, guided_pair, millions, twin, unet

STOCK = "diffusers"
T = 500


def shapes(setting: Setting) -> list[tuple[str, int]]:
    """(network, latent side) of each table."""
    if setting.size == "small":
        return [("tiny UNet", 8)]
    if setting.switches:
        return [("SD 1 UNet at half width", 64)]
    normal = [("SD 1 UNet at half width", 64), ("SD 1 UNet", 32)]
    return [*normal, ("SD 1 UNet at half width", 32), ("SD 1 UNet", 64)] if setting.size == "large" else normal


def run(setting: Setting) -> Iterator[Table]:
    """One table per shape."""
    for name, side in shapes(setting):
        network = filled(unet(name), setting)
        with torch.inference_mode():
            yield step(f"{name} ({millions(network)}), 2 x 4 x {side} x {side}", network, side, setting)


def step(name: str, network: UNet, side: int, setting: Setting) -> Table:
    """Every contender on the same state, time, context and weights."""
    contenders = ours(network, side, setting)
    if setting.opponent:
        contenders |= theirs(network, side, setting)
    base = STOCK if setting.opponent else "ldmkit forward"
    reference = contenders[base]()
    errors = {key: relative_error(call(), reference) for key, call in contenders.items() if key != base}
    times = interleaved(contenders, setting, warm_up=3 if setting.compiles else 0)
    title = f"one UNet step, {name}, {setting.label}"
    return comparison(title, times, base, errors=errors, notes=absent(setting))


def ours(network: UNet, side: int, setting: Setting) -> dict[str, Callable[[], Tensor]]:
    """ldmkit: as a module, and bound as a sampler calls it."""
    x, cond = guided_pair(network, side, setting)
    t = torch.full((2,), T, device=setting.device)
    bound = network.bind(cond, [T])
    last = twin(network).to(memory_format=torch.channels_last).bind(cond, [T])
    calls = {
        "ldmkit forward": lambda: network(x, t, cond.context),
        "ldmkit bound": lambda: bound(x, T),
        "ldmkit bound, channels-last": lambda: last(channels_last(x), T),
    }
    if setting.compiles:
        compiled = twin(network)
        compiled.compile(**compile_options(setting))
        bound_compiled = compiled.bind(cond, [T])
        calls["ldmkit bound, compiled"] = lambda: bound_compiled(x, T)
    return calls


def theirs(network: UNet, side: int, setting: Setting) -> dict[str, Callable[[], Tensor]]:
    """diffusers: stock, and with each of its switches."""
    from . import opponents

    x, cond = guided_pair(network, side, setting)
    x_last = channels_last(x)
    t = torch.tensor(T, device=setting.device)

    def call(model: torch.nn.Module, state: Tensor) -> Callable[[], Tensor]:
        return lambda: model(state, t, encoder_hidden_states=cond.context).sample

    def model() -> torch.nn.Module:
        return opponents.sharing(opponents.unet(network), network)

    calls = {
        STOCK: call(model(), x),
        "diffusers channels-last": call(opponents.tuned(model(), fused=False), x_last),
        "diffusers channels-last, fused": call(opponents.tuned(model(), fused=True), x_last),
    }
    if setting.compiles:
        compiled = opponents.tuned(model(), fused=True)
        compiled.compile(**compile_options(setting))
        calls["diffusers channels-last, fused, compiled"] = call(compiled, x_last)
    return calls


def channels_last(x: Tensor) -> Tensor:
    """The tensor with its channels innermost in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def compile_options(setting: Setting) -> dict[str, object]:
    """The best that torch.compile offers a step of fixed shape: on an accelerator tuned kernels in one graph."""
    return {"mode": "default" if setting.device.type == "cpu" else "max-autotune", "fullgraph": True}


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["unet_step", *sys.argv[1:]]))
