r"""Guidance by CLIP: any model is steered towards images that look like a prompt to CLIP.

With the decoded estimate :math:`D(\hat x_0(x))` and CLIP's two towers I and T,

.. math::

    \mathrm{sim}(x) = \cos(I(D(\hat x_0(x))), T(\mathrm{prompt})), \qquad
    \hat x_0' = \hat x_0 + s \, \frac{\sigma^2}{\alpha} \, \nabla_x \mathrm{sim}(x)

which is the estimate that belongs to the score plus :math:`s \nabla_x \mathrm{sim}`. The gradient passes the first
stage's decoder and the network itself, so the call keeps their activations. s = 0 is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ldmkit import Conditioning, Level, Levels
from ldmkit.denoiser import Denoise
from ldmkit.guidance import Bind, Guidance, NoGuidance
from torch import Tensor, nn

from ldmkit_openclip.architecture import both_halves, fill, published, read
from ldmkit_openclip.pixels import normalised, statistics
from ldmkit_openclip.prompts import ClipWords


class ClipSimilarity(nn.Module):
    """How much images look like texts to an OpenCLIP model: a cosine in [-1, 1], differentiable in the image.

    Args:
        architecture: a name of OpenCLIP's table, such as ``ViT-B-32``, or such an entry in OpenCLIP's words.
        source: the weights: a file of OpenCLIP, or a published tag. None: random weights, which like nothing.

    Raises:
        ValueError: an architecture that is no CLIP with CLIP's own words, or a ``source`` that is neither a file nor a
            tag.
        CheckpointError: ``source`` holds other weights.
    """

    def __init__(self, architecture: str | Mapping[str, Any], source: str | None = None) -> None:
        super().__init__()
        self.model = both_halves(architecture, "clip-guidance")
        record = {} if source is None else published(architecture, source, "clip-guidance")
        if source is not None:
            fill(self.model, read(architecture, source, "clip-guidance"), source, "clip-guidance")
        self.mean, self.std = statistics(None, None, record)
        self.words = ClipWords(self.model.context_length, "clip-guidance")
        self.requires_grad_(False).eval()

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, E) of B prompts."""
        ids = self.words(prompts).to(self.model.logit_scale.device)
        encoded: Tensor = self.model.encode_text(ids, normalize=True)
        return encoded

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """The cosine (B,) of each image with its text.

        Args:
            image: (B, 3, H, W), about [-1, 1].
            text: (B, E), or (1, E) for all, as :meth:`text` gives.

        Raises:
            ValueError: images of another shape.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"CLIP reads images of shape (B, 3, H, W), got {tuple(image.shape)}")
        scale, size = self.model.logit_scale, self.model.visual.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        x = normalised(image.to(scale.device), size, self.mean, self.std).to(scale.dtype)
        cosine: Tensor = (self.model.encode_image(x, normalize=True) * text).sum(dim=-1)
        return cosine


@dataclass(frozen=True, eq=False)
class ClipGuidance:
    """Steers the estimate of x0 by the gradient of CLIP's similarity.

    ``dataclasses.replace(guidance, prompts=...)`` gives another with the same CLIP.

    Args:
        similarity: CLIP; on the model's device it is fastest.
        decode: estimates of x0 (B, C, h, w) to images (B, 3, H, W) about [-1, 1], differentiable: ``stage.decode`` of a
            latent model (``model.decode`` would cut the gradient off), ``lambda x0: x0`` for a model of pixels.
        prompts: one for all images, or one per image.
        scale: s; 0 is off. The similarity is at most 1 and its gradient small: hundreds are usual.
        inner: the guidance to steer, such as classifier-free guidance.

    Raises:
        ValueError: no prompts; in a call, another number of prompts than images.

    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4; Nichol et al. 2022 (arXiv 2112.10741), section 2.3.
    """

    similarity: ClipSimilarity
    decode: Callable[[Tensor], Tensor]
    prompts: Sequence[str]
    scale: float
    inner: Guidance = field(default_factory=NoGuidance)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not self.prompts:
            raise ValueError(f"guidance 'clip-guidance' needs a list of prompts, got {self.prompts!r}")

    @property
    def needs_uncond(self) -> bool:
        """As the guidance that it steers."""
        return self.inner.needs_uncond

    @property
    def needs_grad(self) -> bool:
        """True, unless it is off."""
        return self.scale != 0 or self.inner.needs_grad

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind the guidance to steer, and encode the prompts once."""
        denoise = self.inner(bind, cond, uncond, levels)
        if self.scale == 0:
            return denoise
        with torch.no_grad():
            text = self.similarity.text(self.prompts)

        def steered(x: Tensor, level: Level[float]) -> Tensor:
            if len(text) not in (1, len(x)):
                raise ValueError(f"guidance 'clip-guidance' has {len(text)} prompts for {len(x)} images")
            # At alpha = 0 the state says nothing about the image, and at sigma = 0 there is nothing left to steer.
            if level.alpha == 0 or level.sigma == 0:
                return denoise(x, level)
            with torch.enable_grad():
                state = x.detach().requires_grad_(True)
                x0 = denoise(state, level)
                similar = self.similarity(self.decode(x0), text).sum()
                (gradient,) = torch.autograd.grad(similar, state)
            return x0.detach().add_(gradient, alpha=self.scale * level.sigma**2 / level.alpha)

        return steered


def clip_guidance(
    architecture: str | Mapping[str, Any],
    *,
    prompts: Sequence[str],
    decode: Callable[[Tensor], Tensor],
    scale: float,
    source: str | None = None,
    inner: Guidance | None = None,
) -> ClipGuidance:
    """CLIP guidance with a CLIP of its own.

    Args:
        architecture: as :class:`ClipSimilarity`.
        prompts: one for all images, or one per image.
        decode: as :class:`ClipGuidance`; ``model.stage.decode`` of a latent model.
        scale: s; 0 is off.
        source: as :class:`ClipSimilarity`.
        inner: the guidance to steer; None: the conditional model as it is.

    Raises:
        ValueError: no prompts, or as :class:`ClipSimilarity`.
        CheckpointError: ``source`` holds other weights.
    """
    return ClipGuidance(
        similarity=ClipSimilarity(architecture, source),
        decode=decode,
        prompts=prompts,
        scale=scale,
        inner=NoGuidance() if inner is None else inner,
    )
