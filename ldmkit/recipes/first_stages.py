"""The published first stages as parts: :func:`first_stage` gives one, :data:`NOTES` says what is known of it.

All were trained on OpenImages; the numbers are on the ImageNet validation set at 256 x 256: rFID, inception score, PSNR
in dB, PSIM (LPIPS with VGG) and SSIM of the reconstruction.

Source: Rombach et al. 2022 (arXiv 2112.10752), table 8 and appendix G.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ldmkit.errors import UnknownComponentError
from ldmkit.parts import Part, Value
from ldmkit.recipes.notes import LDM, STATED

_SITE = "https://ommer-lab.com/files/latent-diffusion"


def _kl(channels: int, channel_mult: Sequence[int], attn_resolutions: Sequence[int] = ()) -> Part:
    sizes = {"channels": channels, "z_channels": channels, "channel_mult": channel_mult}
    return Part("kl", {**sizes, "attn_resolutions": attn_resolutions})


def _vq(
    channels: int,
    codebook_size: int,
    channel_mult: Sequence[int],
    attn_resolutions: Sequence[int] = (),
    attention: bool = True,
) -> Part:
    sizes = {"channels": channels, "z_channels": channels, "codebook_size": codebook_size, "channel_mult": channel_mult}
    return Part("vq", {**sizes, "attn_resolutions": attn_resolutions, "attention": attention})


def _notes(source: str, rfid: float, inception: float, psnr: float, psim: float, ssim: float) -> dict[str, Value]:
    numbers: dict[str, Value] = {"rFID": rfid, "IS": inception, "PSNR": psnr, "PSIM": psim, "SSIM": ssim}
    return {"licence": STATED, "source": source, "paper": LDM, "numbers": numbers}


_SHARE = "https://heibox.uni-heidelberg.de/f"
FIRST_STAGES: Mapping[str, Part] = {
    "vq-f4": _vq(3, 8192, [1, 2, 4]),
    "vq-f4-noattn": _vq(3, 8192, [1, 2, 4], attention=False),
    "vq-f8": _vq(4, 16384, [1, 2, 2, 4], [32]),
    "vq-f8-n256": _vq(4, 256, [1, 2, 2, 4], [32]),
    "vq-f16": _vq(8, 16384, [1, 1, 2, 2, 4], [16]),
    "kl-f4": _kl(3, [1, 2, 4]),
    "kl-f8": _kl(4, [1, 2, 4, 4]),
    "kl-f16": _kl(16, [1, 1, 2, 2, 4], [16]),
    "kl-f32": _kl(64, [1, 1, 2, 2, 4, 4], [16, 8]),
}
"""Name -> part, with scale 1: latents as the autoencoder makes them."""

NOTES: Mapping[str, Mapping[str, Value]] = {
    "vq-f4": _notes(f"{_SITE}/vq-f4.zip", 0.58, 224.78, 27.43, 0.53, 0.82),
    "vq-f4-noattn": _notes(f"{_SHARE}/9c6681f64bb94338a069/?dl=1", 1.06, 221.94, 25.21, 0.72, 0.76),
    "vq-f8": _notes(f"{_SITE}/vq-f8.zip", 1.14, 201.92, 23.07, 1.17, 0.65),
    "vq-f8-n256": _notes(f"{_SITE}/vq-f8-n256.zip", 1.49, 194.20, 22.35, 1.26, 0.62),
    "vq-f16": _notes(f"{_SHARE}/0e42b04e2e904890a9b6/?dl=1", 5.15, 144.55, 20.83, 1.73, 0.54),
    "kl-f4": _notes(f"{_SITE}/kl-f4.zip", 0.27, 227.57, 27.53, 0.55, 0.82),
    "kl-f8": _notes(f"{_SITE}/kl-f8.zip", 0.90, 209.90, 24.19, 1.02, 0.69),
    "kl-f16": _notes(f"{_SITE}/kl-f16.zip", 0.87, 210.31, 24.08, 1.07, 0.68),
    "kl-f32": _notes(f"{_SITE}/kl-f32.zip", 2.04, 189.53, 22.27, 1.41, 0.61),
}
"""Name -> licence, source, paper and numbers."""


def first_stage(name: str, scale: float = 1.0, channels: int | None = None) -> Part:
    """A published first stage; ``ldmkit.registry.build_part("first-stage", part)`` makes one, with fresh weights.

    Args:
        name: one of :data:`FIRST_STAGES`.
        scale: what its latents are multiplied by.
        channels: of the latent, for a model that trained another one of the same architecture; None: as published.

    Raises:
        UnknownComponentError: there is no such first stage.
    """
    if name not in FIRST_STAGES:
        raise UnknownComponentError(f"there is no published first stage '{name}'; there are {list(FIRST_STAGES)}")
    part = FIRST_STAGES[name]
    width = {} if channels is None else {"channels": channels, "z_channels": channels}
    return Part(part.name, {**part.options, **width, "scale": scale})
