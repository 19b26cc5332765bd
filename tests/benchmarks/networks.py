"""The networks that are measured: the shapes of Stable Diffusion 1, narrower ones, and random weights for them.

Networks are laid out on ``meta`` and filled once, so that no time goes into an initialisation that is overwritten, and
no branch is zero as it is in a network before training.
"""

from __future__ import annotations

from inspect import signature
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldmkit.backbones.unet import UNet
from ldmkit.conditioning import Conditioning
from ldmkit.first_stages.kl import KL

from .measure import Setting

M = TypeVar("M", bound=nn.Module)

TOKENS = 77
SCALE = 0.18215

SD1 = {"channel_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attention_resolutions": (1, 2, 4), "context_dim": 768}
TINY = {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (1,), "context_dim": 64}
UNETS = {
    "tiny UNet": {"model_channels": 32, "num_heads": 2, **TINY},
    "SD 1 UNet at half width": {"model_channels": 160, "num_heads": 4, **SD1},
    "SD 1 UNet": {"model_channels": 320, "num_heads": 8, **SD1},
}
FIRST_STAGES = {
    "tiny KL": {"base_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1},
    "KL f = 8": {"base_channels": 128, "channel_mult": (1, 2, 4, 4), "num_res_blocks": 2},
}


def unet(name: str) -> UNet:
    """A UNet of :data:`UNETS`, without weights."""
    with torch.device("meta"):
        return UNet(4, **UNETS[name])


def twin(network: UNet) -> UNet:
    """Another UNet that reads the same weights: to compile it, or to lay it out anew, without touching the first."""
    with torch.device("meta"):
        other = UNet(**{option: getattr(network, option) for option in signature(UNet).parameters})
    other.load_state_dict(network.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def first_stage(name: str) -> KL:
    """A first stage of :data:`FIRST_STAGES`, without weights."""
    with torch.device("meta"):
        return KL(**FIRST_STAGES[name], scale=SCALE)


def filled(module: M, setting: Setting) -> M:
    """Give a module on ``meta`` random weights, ready to run.

    Matrices are N(0, 1 / fan-in), biases N(0, 0.1**2), factors of norms N(1, 0.1**2).
    """
    module = module.to_empty(device=setting.device)
    if isinstance(module, KL):
        module.scale.fill_(SCALE)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(0 if name.endswith("bias") else 1, 0.1)
    return module.to(setting.dtype).eval().requires_grad_(False)


def draw(setting: Setting, *shape: int) -> Tensor:
    """Standard normal numbers of the setting's device and precision, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(setting.device, setting.dtype)


def guided_pair(network: UNet, side: int, setting: Setting) -> tuple[Tensor, Conditioning]:
    """State (2, 4, side, side) and context (2, 77, D) of one guided step."""
    return draw(setting, 2, 4, side, side), Conditioning(context=draw(setting, 2, TOKENS, network.accepts["context"]))


def millions(module: nn.Module) -> str:
    """The number of parameters, for titles."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.0f}M"
