"""The first stage as something the loop trains: an autoencoder on images, with or without an adversary.

>>> loss = FirstStageLoss(read_lpips("vgg16.pth"), KLWeight(1e-6), fit=LogVariance())
>>> run = Run("runs/kl", 250_000, 12, constant(4.5e-6), clip=None, optimizer=AdamW(betas=(0.5, 0.9), weight_decay=0.0))
>>> stage = load_first_stage(train(Compression(stage, loss, Adversary(PatchGAN()), shown), records, run))
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmkit.composition import FirstStage, part_of
from ldmkit.errors import BatchError, CheckpointError
from ldmkit.images import read_images
from ldmkit.latents import latent_statistics, posterior_noise
from ldmkit.parts import Part
from ldmkit.process import VP
from ldmkit.training.contract import Record
from ldmkit.training.discriminator import Adversary
from ldmkit.training.first_stage import Autoencoding, Discriminating, FirstStageLoss, finite
from ldmkit.training.metrics import WINDOW, psnr, ssim
from ldmkit.weights.atomic import write_atomically
from ldmkit.weights.importing import import_first_stage

KEY = "first_stage"

MIDDLE = VP().level(500)


@runtime_checkable
class _Scaled(Protocol):
    scale: Tensor


class Compression:
    """A first stage that learns to reconstruct, on records with a ``target``.

    Two phases: ``autoencoder`` and, with an adversary, ``discriminator``, both on the same images; the second sees what
    the first has just learned. :meth:`numbers` says at an interval how good the reconstructions of the shown images
    are; the exported file says so too.

    Args:
        stage: on the device it is to be trained on, with its loss and its adversary.
        loss: every term but the adversary's.
        adversary: None: none.
        shown: images of one size, in any form :func:`ldmkit.images.read_images` takes, to be reconstructed and measured
            at an interval, all at once: some dozens that are not trained on; empty: none.
        last: name of the decoder's last layer in the first stage, where the adversary is balanced.

    Raises:
        TypeError: the first stage is none.
        ValueError: it has no such layer, or a frozen one, and there is an adversary.

    Source: Rombach et al. 2022, section 3.1.
    """

    def __init__(
        self,
        stage: nn.Module,
        loss: FirstStageLoss,
        adversary: Adversary | None = None,
        shown: Sequence[Any] = (),
        last: str = "decoder.conv_out",
    ) -> None:
        self.autoencoder = Autoencoding(stage, loss, adversary, last)
        self.stage = stage
        self.shown = self._read(shown) if len(shown) else None
        self.phases: Mapping[str, nn.Module] = {"autoencoder": self.autoencoder}
        if adversary is not None:
            self.phases = {**self.phases, "discriminator": Discriminating(adversary, stage)}

    def begin(self, read: Callable[[int], Sequence[Record]]) -> None:
        """Nothing is measured before the first step."""

    def prepare(self, records: Sequence[Record], seeds: Sequence[int]) -> dict[str, Any]:
        """``image``, (B, C, H, W) in [-1, 1].

        Raises:
            BatchError: a record without a target.
        """
        for i, record in enumerate(records):
            if "target" not in record:
                raise BatchError(
                    f"record {i} of a batch has no 'target', the image to be reconstructed; it has {sorted(record)}"
                )
        return {"image": self._read([record["target"] for record in records])}

    @torch.no_grad()
    def show(self, step: int) -> dict[str, Tensor]:
        """``reconstructions``: the shown images, each above what became of it."""
        if self.shown is None:
            return {}
        made, _ = self._reconstructed(self._placed(self.shown))
        return {"reconstructions": torch.cat([self.shown, made.float().clamp(-1, 1).cpu()], dim=2) / 2 + 0.5}

    def numbers(self, step: int) -> dict[str, float]:
        """What :meth:`measured` says of the shown images, and from the adversary's start ``adversarial``, its term, and
        ``adversary_weight``, the weight of that after the balance."""
        if self.shown is None:
            return {}
        numbers = self.measured(self.shown)[1]
        adversary = self.autoencoder.adversary
        if adversary is not None and step >= adversary.start:
            with torch.enable_grad():  # the balance is one of gradients
                terms = self.autoencoder.terms(self._placed(self.shown), range(len(self.shown)), step)
            numbers["adversarial"] = float(terms.adversarial.detach().mean())
            numbers["adversary_weight"] = float(terms.weight.detach())
        return numbers

    @torch.no_grad()
    def measured(self, image: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Images (B, C, H, W) in [-1, 1] -> reconstructions in [0, 1] and, as means, how good they are.

        The numbers are ``psnr`` in dB, ``ssim``, the terms of the loss without an adversary, what the regulariser
        counts (``kl``, or ``used`` and ``perplexity``), and of the latents, drawn as in training, ``latent_mean``,
        ``latent_std``, the ``recommended_scale`` that would make that 1, and ``latent_snr``: the signal-to-noise ratio
        Var(z) alpha**2 / sigma**2 at the middle of the published models' process, 0.13 for a deviation of 1.

        Source of the last: Rombach et al. 2022, section D.1.
        """
        image = self._placed(image)
        made, latent = self._reconstructed(image)
        terms = self.autoencoder.loss(image, made, latent)
        numbers = {name: float(getattr(terms, name).mean()) for name in ("pixels", "perceptual", "fit", "regulariser")}
        numbers |= {**self.autoencoder.loss.regulariser.numbers(latent), **self._latents(image)}
        image, made = image / 2 + 0.5, made.float().clamp(-1, 1) / 2 + 0.5
        numbers["psnr"] = float(psnr(image, made).mean())
        if min(image.shape[2:]) >= WINDOW:
            numbers["ssim"] = float(ssim(image, made).mean())
        return made, numbers

    def export(self, path: Path, notes: Mapping[str, Any]) -> None:
        """Write the first stage for :func:`load_first_stage`; the loss and the discriminator stay behind."""
        numbers = {} if self.shown is None else finite(self.measured(self.shown)[1])
        save_first_stage(self.stage, path, {**notes, "numbers": numbers})

    def _reconstructed(self, image: Tensor) -> tuple[Tensor, Any]:
        """What the first stage gives: an image and what the regulariser reads."""
        made, latent = self.stage(image, posterior_noise(cast(FirstStage, self.stage), image, range(len(image))))
        return made, latent

    def _placed(self, image: Tensor) -> Tensor:
        return image.to(next(self.stage.parameters()).device)

    def _latents(self, image: Tensor) -> dict[str, float]:
        """What the latents are like."""
        found = latent_statistics(cast(FirstStage, self.stage), [image])
        numbers = {
            "latent_mean": sum(found.mean) / len(found.mean),
            "latent_std": found.overall,
            "latent_snr": found.snr(MIDDLE),
        }
        if found.overall > 0:
            numbers["recommended_scale"] = found.rescaling * _scale(self.stage)
        return numbers

    def _read(self, images: Sequence[Any]) -> Tensor:
        return read_images(list(images), "target", cast(FirstStage, self.stage).image_channels) * 2 - 1


def _scale(stage: nn.Module) -> float:
    return float(stage.scale) if isinstance(stage, _Scaled) else 1.0


def save_first_stage(stage: nn.Module, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> Path:
    """Write a first stage as one safetensors file: its weights under their own names, and how to build it again.

    Args:
        stage: a registered component.
        path: the file.
        notes: plain data to keep with it.

    Raises:
        CompositionError: its class is not registered, or it was changed by hand.
        OSError: it cannot be written; an old file is left as it was.
    """
    part = part_of("first-stage", stage)
    options = {**part.options, "scale": _scale(stage)} if isinstance(stage, _Scaled) else part.options
    said = {KEY: json.dumps(Part(part.name, options).to_json()), "notes": json.dumps(dict(notes or {}))}
    kept = {name: value for name, value in stage.state_dict().items() if name != "scale"}
    tensors = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
    path = Path(path)
    write_atomically(path, lambda partial: save_file(tensors, partial, said))
    return path


def load_first_stage(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> FirstStage:
    """The first stage that :func:`save_first_stage` wrote, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: another kind of file, or a damaged one.
        UnknownComponentError: the component is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(KEY)
        part = None if said is None else Part.from_json(json.loads(said))
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is no first stage that save_first_stage wrote: {error}") from error
    if part is None:
        raise CheckpointError(
            f"{path} does not say which first stage it holds: ldmkit.load reads whole models, import_first_stage the "
            "files of others"
        )
    return import_first_stage(path, part, device=device)
