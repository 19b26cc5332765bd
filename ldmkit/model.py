r"""The composed model: first stage, named conditioners, denoiser.

.. math:: z = E(x), \qquad z_t = \alpha_t z + \sigma_t \epsilon, \qquad
          L = \mathbb{E}\, \| \mathrm{target} - f_\theta(z_t, t, c(y)) \|^p, \qquad \tilde x = D(z_0)

:class:`LatentDiffusion` checks when it is composed that its parts fit, samples latents with any sampler and guidance,
and its ``forward`` is the training loss per sample. It knows no task: a batch arrives ready for the conditioners.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Self, SupportsIndex, cast

import torch
from torch import Tensor, nn

from ldmkit.component import did_you_mean
from ldmkit.composition import FirstStage, check_call, check_composition, check_objective, composition_table, recipe_of
from ldmkit.conditioning import LATENT, Batch, Conditioner, Conditioning, Joint
from ldmkit.denoiser import (
    PREDICTIONS,
    Backbone,
    Denoise,
    Denoiser,
    DenoisingLoss,
    elbo_weights,
    min_snr_weights,
    precision,
)
from ldmkit.errors import BatchError
from ldmkit.guidance import Bind, Guidance, NoGuidance, has_weak
from ldmkit.noise import Noise, seeds_from, tempered
from ldmkit.parts import Recipe
from ldmkit.placing import by_tiles, by_window, is_placed
from ldmkit.process import Level, Levels, Process
from ldmkit.registry import build_part
from ldmkit.samplers.contract import AtStop, Sampler
from ldmkit.samplers.ddim import DDIM
from ldmkit.tiling import Tiles, Window, decoded, encoded


class LatentDiffusion(nn.Module):
    """First stage + conditioner(s) + denoiser, checked when composed.

    Args:
        first_stage: images to latents and back.
        backbone: the raw network.
        process: the forward process it is trained on.
        prediction: what it outputs: ``eps``, ``v``, ``x0`` or ``flow``.
        conditioner: one conditioner, several by name, or a :class:`Joint` with dropout rates and guided sources.
        objective: the denoising loss; None: mean squared error.

    Raises:
        TypeError: something is not the component its slot needs.
        CompositionError: two parts do not fit; the message names both and the fix.
    """

    def __init__(
        self,
        *,
        first_stage: FirstStage,
        backbone: Backbone,
        process: Process,
        prediction: str = "eps",
        conditioner: Conditioner | Mapping[str, Conditioner] | Joint | None = None,
        objective: DenoisingLoss | None = None,
    ) -> None:
        super().__init__()
        joint = _joint(conditioner)
        denoiser = Denoiser(backbone, process, prediction)
        objective = DenoisingLoss() if objective is None else objective
        check_composition(first_stage, backbone, joint)
        check_objective(objective, process)
        self.first_stage = cast(nn.Module, first_stage)
        self.denoiser = denoiser
        self.conditioner = joint
        self.objective = objective
        elbo = elbo_weights(process, prediction).float() if objective.elbo_weight else None
        self.register_buffer("elbo", elbo, persistent=False)

    @property
    def process(self) -> Process:
        """The forward process."""
        return self.denoiser.process

    @property
    def backbone(self) -> Backbone:
        """The raw network."""
        return cast(Backbone, self.denoiser.backbone)

    @property
    def stage(self) -> FirstStage:
        """The first stage, typed."""
        return cast(FirstStage, self.first_stage)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        network = cast(nn.Module, self.backbone)
        first = next(chain(network.parameters(), network.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def multiple(self) -> int:
        """Image sides must be multiples of this many pixels."""
        return self.stage.factor * self.backbone.multiple

    def train(self, mode: bool = True) -> Self:
        """Training mode for everything but the first stage, which is frozen here."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def cast(self, dtype: torch.dtype) -> Self:
        """The network and the conditioners in this precision; the first stage keeps its own, as its scale must."""
        self.denoiser.to(dtype)
        if self.conditioner is not None:
            self.conditioner.to(dtype)
        return self

    def __str__(self) -> str:
        parts = (self.stage, self.backbone, self.process, self.denoiser.prediction, self.conditioner)
        total = sum(p.numel() for p in self.parameters())
        return f"{composition_table(*parts)}; {total:,} parameters"

    def recipe(self) -> Recipe:
        """The composition as plain data: see :func:`ldmkit.composition.recipe_of`."""
        parts = (self.stage, self.backbone, self.process, self.denoiser.prediction, self.conditioner)
        return recipe_of(*parts, self.objective)

    def save(
        self,
        path: str | PathLike[str],
        notes: Mapping[str, Any] | None = None,
        *,
        max_shard_bytes: int = 10 * 10**9,
    ) -> Path:
        """Write weights and recipe as safetensors, and say what to load: see :func:`ldmkit.weights.native.save`."""
        from ldmkit.weights.native import save

        return save(self, path, notes, max_shard_bytes=max_shard_bytes)

    @torch.no_grad()
    def encode(self, image: Tensor, noise: Tensor | None = None, tiles: Tiles | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to float32 latents; see :meth:`ldmkit.composition.FirstStage.encode`.

        With ``tiles`` by overlapping windows, where the whole does not fit: see :func:`ldmkit.tiling.encoded`.
        """
        dtype = precision(self.first_stage) if image.is_floating_point() else image.dtype
        image, noise = image.to(dtype), None if noise is None else noise.to(dtype)
        if tiles is None:
            return self.stage.encode(image, noise).float()
        return encoded(self.stage.encode, image, noise, tiles, self.stage.factor).float()

    @torch.no_grad()
    def decode(self, z: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Latents to float32 images (B, C, H, W), about [-1, 1] and not clamped.

        With ``tiles`` by overlapping windows, where the whole does not fit: see :func:`ldmkit.tiling.decoded`.
        """
        z = z.to(self.device, precision(self.first_stage))
        image = self.stage.decode(z) if tiles is None else decoded(self.stage.decode, z, tiles, self.stage.factor)
        return image.float()

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, h, w) of the latent of an image of ``size`` = (H, W) pixels.

        Raises:
            ValueError: a side the model cannot do, with the nearest two that it can.
        """
        for side in size:
            if side < self.multiple or side % self.multiple:
                below, above = side // self.multiple * self.multiple, (side // self.multiple + 1) * self.multiple
                near = f"{below} or {above}" if below else f"{above}"
                raise ValueError(
                    f"image sides must be multiples of {self.multiple} px (first stage {self.stage.factor} x backbone "
                    f"{self.backbone.multiple}), got {size[0]} x {size[1]}: use {near} for {side}"
                )
        return self.stage.channels, size[0] // self.stage.factor, size[1] // self.stage.factor

    def filled(self, batch: Batch, tiles: Tiles | None = None) -> dict[str, Any]:
        """The batch on the model's device, with every ``*_latent`` key that a conditioner reads encoded here."""
        ready = {key: v.to(self.device) if isinstance(v, Tensor) else v for key, v in batch.items()}
        for key in self.conditioner.reads if self.conditioner is not None else ():
            source = key.removesuffix(LATENT)
            if key not in ready and key != source and source in ready:
                ready[key] = self.encode(ready[source], tiles=tiles)
        return ready

    def sample(
        self,
        batch: Batch | None = None,
        *,
        size: tuple[int, int],
        seed: SupportsIndex | Sequence[SupportsIndex] = 0,
        count: int | None = None,
        levels: Levels | int = 50,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        negative: Batch | None = None,
        wrap: Callable[[Denoise], Denoise] | None = None,
        at_stop: AtStop | None = None,
        temperature: float = 1.0,
        start: Tensor | None = None,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Draw latents; image i depends on its seed and its condition only, whatever the batch.

        Args:
            batch: what the conditioners read, B samples; {} without a conditioner.
            size: (H, W) of the images, in pixels.
            seed: one per image, or one for all: then image i has seed + i.
            count: B; None: the number of seeds, or the size of the condition.
            levels: where to stop, or the number of steps of the process's customary list.
            sampler: None: DDIM with eta 0.
            guidance: None: the conditional model as it is.
            negative: what guidance compares with, in place of the null. Keys that it leaves out are the batch's, and a
                guided source that reads none of its keys stays null.
            wrap: wraps the guided denoiser: clip, quantize, keep_known, or one of your own.
            at_stop: called as ``(x, now) -> x`` before each step.
            temperature: factor on the noise drawn in the steps.
            start: (B, c, h, w), the state at the first level, float32 or float64; None: drawn from the seeds.
            tiles: denoise by overlapping windows of this size, in pixels, where the whole does not fit.

        Returns:
            (B, c, h, w) latents at the landing level, float32 (float64 where ``start`` is); :meth:`decode` makes them
            images.

        Raises:
            BatchError: the batch lacks a key that a conditioner reads, or has one that none reads.
            ValueError, TypeError: an argument does not fit; before the backbone runs.
        """
        sampler, guidance = sampler or DDIM(), guidance or NoGuidance()
        levels = self.process.levels(levels) if isinstance(levels, int) else levels
        check_call(sampler, guidance, levels, temperature)
        self._check_ready(guidance)
        shape = self.latent_shape(size)
        batch = batch or {}
        self._check_batch(batch)
        self._check_negative(batch, negative, guidance)
        with torch.no_grad() if guidance.needs_grad else torch.inference_mode():
            windows = self._windows(tiles, shape, guidance)
            cond, uncond = self._condition(batch, negative, guidance.needs_uncond, windows, shape[1:], tiles)
            count = _count(cond, seed, count, start)
            self._check_concat(cond, shape)
            noise = Noise(seeds_from(seed, count))
            x = self._start(noise, shape, levels.start) if start is None else self._given(start, (count, *shape))
            bind: Bind = lambda c: self.denoiser.bind(c, levels)  # noqa: E731 - one line says it
            bind = bind if windows is None else by_tiles(bind, windows, shape[1:], is_placed(self.conditioner))
            denoise = guidance(bind, cond, uncond, levels)
            denoise = denoise if wrap is None else wrap(denoise)
            step_noise = noise if temperature == 1 else tempered(noise, temperature)
            z = sampler(denoise, x, levels, step_noise, at_stop)
        return z.clone()

    def _check_ready(self, guidance: Guidance) -> None:
        """Refuse what would make images depend on more than their seeds, and guidance that would do nothing."""
        if self.device.type == "meta":
            raise ValueError("the model is on the device 'meta' and has no values: load its weights first")
        if any(isinstance(m, nn.Dropout) and m.training and m.p for m in self.modules()):
            raise ValueError("the model is in training mode, where dropout draws at random: call model.eval() first")
        if guidance.needs_uncond and self.conditioner is not None and not self.conditioner.guided:
            raise ValueError(
                "no source of this model is guided, so that guidance would compare the model with itself: use guidance "
                "'none', or name guided sources in the Joint"
            )

    def _check_batch(self, batch: Batch, also: Collection[str] = ()) -> None:
        """Refuse a batch that lacks a key, and one with a key that nobody would read."""
        known = [*also, *([] if self.conditioner is None else self.conditioner.may_read())]
        reads = f"its conditioners read {known}" if known else "it has no conditioner"
        for key in batch:
            if key not in known or (f"{key}{LATENT}" in batch and f"{key}{LATENT}" in known):
                raise BatchError(f"the model would ignore '{key}' of the batch{did_you_mean(key, known)}; {reads}")
        if self.conditioner is not None:
            self.conditioner.check(batch, encoded=False)

    def _check_training_batch(self, batch: Batch) -> None:
        if ("image" in batch) == ("latent" in batch):
            raise BatchError(f"training needs either 'image' or 'latent' in the batch, which has {sorted(batch)}")
        self._check_batch(batch, also=("image", "latent"))

    def _check_negative(self, batch: Batch, negative: Batch | None, guidance: Guidance) -> None:
        if negative is None:
            return
        if not guidance.needs_uncond:
            raise ValueError(f"guidance {guidance} compares with nothing, so that the negative batch would be ignored")
        self._check_batch({**batch, **negative})

    def _windows(
        self, tiles: Tiles | None, shape: tuple[int, int, int], guidance: Guidance
    ) -> tuple[Window, ...] | None:
        """The windows on the latent; None where one is enough."""
        if tiles is None:
            return None
        windows = tiles.cells(self.stage.factor, self.backbone.multiple).windows(shape[1:])
        if len(windows) > 1 and has_weak(guidance):
            raise ValueError(
                "guidance 'autoguidance' runs its weaker network on the whole image, which tiles= are there to avoid: "
                "leave one of the two out"
            )
        return windows if len(windows) > 1 else None

    def _condition(
        self,
        batch: Batch,
        negative: Batch | None,
        with_null: bool,
        windows: Sequence[Window] | None,
        shape: tuple[int, int],
        tiles: Tiles | None,
    ) -> tuple[Conditioning, Conditioning | None]:
        joint = self.conditioner
        if joint is None:
            return Conditioning(), None
        ready = self.filled(batch, tiles)
        against = None if negative is None else {**ready, **self.filled(negative, tiles)}
        null = joint.untold(negative or {})

        def condition(ready: Batch, against: Batch | None) -> tuple[Conditioning, Conditioning | None]:
            cond: Conditioning = joint(ready)
            if not with_null:
                return cond, None
            return cond, joint.null(ready) if against is None else joint(against, drop=null)

        if windows is None or not is_placed(joint):
            return condition(ready, against)
        return by_window(condition, joint, ready, against, windows, shape)

    def _start(self, noise: Noise, shape: tuple[int, int, int], level: Level[float]) -> Tensor:
        """The state of unit-variance data at the first level: N(0, alpha**2 + sigma**2)."""
        like = torch.empty((len(noise.seeds), *shape), device=self.device)
        return noise.on("start").constant(like) * math.hypot(level.alpha, level.sigma)

    def _given(self, start: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(start.shape) != shape:
            raise ValueError(f"start has shape {tuple(start.shape)}; this size and batch need {shape}")
        if not start.is_floating_point():
            raise TypeError(f"start holds a state, which is floating point, got {start.dtype}")
        return start.to(self.device, torch.promote_types(start.dtype, torch.float32))

    def _check_concat(self, cond: Conditioning, shape: tuple[int, ...]) -> None:
        if cond.concat is not None and cond.concat.shape[2:] != shape[1:]:
            raise ValueError(
                f"the conditioners give concat of {tuple(cond.concat.shape[2:])} cells; the latent has {shape[1:]}: "
                "resize the condition, or ask for the image size that belongs to it"
            )

    def forward(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """The loss per sample, (B,): so that a wrapper such as DDP sees the whole computation.

        Args:
            batch: ``image`` (B, C, H, W) in [-1, 1], or ``latent`` (B, c, h, w) computed before; and what the
                conditioners read.
            seeds: one per sample; time, noise, posterior draw and dropout are functions of it alone.
        """
        noise = Noise(tuple(seeds))
        self._check_training_batch(batch)
        batch = self.filled(batch)
        z = self._training_latent(batch, noise)
        t = self.process.draw(noise.on("time").uniform())
        cond = Conditioning()
        if self.conditioner is not None:
            cond = self.conditioner.dropped(batch, self._keep(noise, self.conditioner.drop))
        return self.denoising_loss(z, noise.on("eps").constant(z), t, cond)

    def loss(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """The mean of :meth:`forward` over the batch, 0-d."""
        loss: Tensor = self(batch, seeds)
        return loss.mean()

    def denoising_loss(self, z: Tensor, eps: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The loss per sample for given noise and times.

        Args:
            z: (B, c, h, w) clean latents.
            eps: (B, c, h, w) noise.
            t: (B,) times.
            cond: B samples.
        """
        self._check_concat(cond, tuple(z.shape[1:]))
        level = self.process.level(t.cpu())  # tables are float64 on the CPU
        level = Level(t.to(z.device), level.alpha.to(z.device), level.sigma.to(z.device))
        c, d = PREDICTIONS[self.denoiser.prediction].target(level)
        out = self.denoiser.predict(level.alpha * z + level.sigma * eps, level, cond)
        elbo = None if self.elbo is None else cast(Tensor, self.elbo)[level.t]
        gamma = self.objective.min_snr
        weight = None if gamma is None else min_snr_weights(level, self.denoiser.prediction, gamma)
        loss: Tensor = self.objective(out, c * z + d * eps, level.t, elbo, weight)
        return loss

    def _training_latent(self, batch: Mapping[str, Any], noise: Noise) -> Tensor:
        if "latent" in batch:
            return cast(Tensor, batch["latent"])
        image: Tensor = batch["image"]
        like = image.new_empty(image.shape[0], *self.latent_shape((image.shape[2], image.shape[3])))
        return self.encode(image, noise.on("posterior").constant(like))

    def _keep(self, noise: Noise, rates: Mapping[str, float]) -> dict[str, Tensor]:
        """Source -> (B,) bool: which samples keep it; a source that is never dropped is not named."""
        draws = {name: noise.on(f"drop {name}").uniform() >= rate for name, rate in rates.items() if rate}
        return {name: keep.to(self.device) for name, keep in draws.items()}


def _joint(conditioner: Conditioner | Mapping[str, Conditioner] | Joint | None) -> Joint | None:
    if conditioner is None or isinstance(conditioner, Joint):
        return conditioner
    if isinstance(conditioner, Mapping):
        return Joint(conditioner)
    if not isinstance(conditioner, Conditioner):
        raise TypeError(
            f"{type(conditioner).__name__} is not a conditioner: an nn.Module with reads, provides, forward(batch) and "
            "null(batch)"
        )
    name = re.sub(r"\W", "_", conditioner.reads[0]) if conditioner.reads else ""
    return Joint({name if name.isidentifier() and name not in dir(nn.ModuleDict) else "condition": conditioner})


def _count(
    cond: Conditioning, seed: SupportsIndex | Sequence[SupportsIndex], count: int | None, start: Tensor | None
) -> int:
    """B, wherever it can be read from; all that say it must agree."""
    said = {
        "count": count,
        "the seeds": len(seed) if isinstance(seed, Sequence | Tensor) else None,
        "the conditioning": cond.batch_size,
        "start": None if start is None else start.shape[0],
    }
    given = {name: size for name, size in said.items() if size is not None}
    if len(set(given.values())) > 1:
        raise ValueError(f"the number of images is said twice: {given}")
    return next(iter(given.values()), 1)


def compose(recipe: Recipe) -> LatentDiffusion:
    """Build every part of a recipe by name and compose the model, with fresh weights.

    Raises:
        UnknownComponentError: a part is not installed; the message lists the plug-ins that failed.
        CompositionError: the parts do not fit.
    """
    sources = {name: build_part("conditioner", source.part) for name, source in recipe.sources.items()}
    joint = Joint(
        sources,
        drop={name: source.drop for name, source in recipe.sources.items()},
        guided=[name for name, source in recipe.sources.items() if source.guided],
    )
    return LatentDiffusion(
        first_stage=build_part("first-stage", recipe.first_stage),
        backbone=build_part("backbone", recipe.backbone),
        process=build_part("process", recipe.process),
        prediction=recipe.prediction,
        conditioner=joint if sources else None,
        objective=DenoisingLoss(**cast(dict[str, Any], recipe.objective)),
    )
