"""The pipelines whose folders have a meaning here: which components they have, and what the model is told.

==========================================  ===================================================================
pipeline                                    sources
==========================================  ===================================================================
``LDMPipeline``                             none
``LDMTextToImagePipeline``                  ``text``: bert-text
``LDMSuperResolutionPipeline``              ``low_res``: low-res
``StableDiffusionPipeline`` (img2img too)   ``text``: clip-text
``StableDiffusionInpaintPipeline``          ``text``, and where it has nine channels ``masked_image``
``StableDiffusionDepth2ImgPipeline``        ``text``, ``depth``
``StableDiffusionUpscalePipeline``          ``text``, ``low_res``: noised-low-res
==========================================  ===================================================================

Guidance drops the text alone. What a folder holds beside these components (safety checker, feature extractor, depth
estimator) has no place in the model and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.parts import Part, Source
from ldmkit.weights.diffusers.words import Words, class_of, count, number

MASKED_IMAGE = {"channels": 4, "order": ["mask", "latent"], "mask_range": [0.0, 1.0], "hole": 0.0}
"""How Stable Diffusion's inpainting models are told what to keep."""


@dataclass(frozen=True)
class Layout:
    """Where a pipeline keeps its components.

    Args:
        first_stage: the folder of the first stage.
        text: the folder of the text encoder; None: it has none.
        scale: what it multiplies latents by, whatever the first stage says; None: what the first stage says.
        told: the further source that a model with ``concat_channels`` has; None: it may have no such channels.
        plain: whether the model may do without that source.
        offset: what it puts in place of its sampler's ``steps_offset``; None: it obeys.
        clips: whether it obeys its sampler's ``clip_sample``; False: it switches that off.
    """

    first_stage: str
    text: str | None = None
    scale: float | None = None
    told: str | None = None
    plain: bool = False
    offset: int | None = None
    clips: bool = True


LAYOUTS: Mapping[str, Layout] = {
    "LDMPipeline": Layout("vqvae"),
    "LDMTextToImagePipeline": Layout("vqvae", text="bert"),
    # It decodes latents as they are.
    "LDMSuperResolutionPipeline": Layout("vqvae", scale=1.0, told="low_res"),
    "StableDiffusionPipeline": Layout("vae", text="text_encoder", offset=1, clips=False),
    "StableDiffusionImg2ImgPipeline": Layout("vae", text="text_encoder", offset=1, clips=False),
    "StableDiffusionInpaintPipeline": Layout("vae", text="text_encoder", told="masked_image", plain=True, offset=1),
    "StableDiffusionDepth2ImgPipeline": Layout("vae", text="text_encoder", told="depth"),
    # It puts this number in place of any other.
    "StableDiffusionUpscalePipeline": Layout("vae", text="text_encoder", scale=0.08333, told="noised_low_res"),
}
COMPONENTS = ("unet", "vae", "vqvae", "scheduler", "low_res_scheduler", "text_encoder", "bert", "tokenizer")
"""Every folder that may be read."""


def layout(index: Words) -> tuple[str, Layout]:
    """(pipeline, its layout) of a ``model_index.json``.

    Raises:
        CheckpointError: another pipeline.
    """
    name = class_of("model_index.json", index, LAYOUTS)
    return name, LAYOUTS[name]


def told(place: Layout, index: Words, unet: Part, factor: int, low_res: Words | None) -> dict[str, Source]:
    """The source beside the text, by name; no entry where the model has none.

    Args:
        place: the layout.
        index: the words of ``model_index.json``.
        unet: the backbone.
        factor: image sides per latent side.
        low_res: the words of ``low_res_scheduler``, for the upscaler.

    Raises:
        CheckpointError: the network reads other channels or classes than such a source gives.
    """
    channels = int(unet.options["concat_channels"])
    if place.told is None or (place.plain and not channels):
        _only(unet, 0, None)
        return {}
    match place.told:
        case "low_res":
            _only(unet, max(channels, 1), None)
            return {"low_res": Source(Part("low-res", {"channels": channels}), guided=False)}
        case "masked_image":
            latent = int(unet.options["channels"])
            _only(unet, latent + 1, None)
            return {"masked_image": Source(Part("masked-image", {**MASKED_IMAGE, "channels": latent}), guided=False)}
        case "depth":
            _only(unet, 1, None)
            return {"depth": Source(Part("depth", {"factor": factor}), guided=False)}
    part = _noised_low_res(index, channels, low_res or {})
    _only(unet, max(channels, 1), int(part.options["levels"]))
    return {"low_res": Source(part, guided=False)}


def _only(unet: Part, channels: int, classes: int | None) -> None:
    """Refuse a network that reads other channels or classes beside the state than the pipeline gives it."""
    has = unet.options["concat_channels"], unet.options.get("num_classes"), unet.options.get("vector_dim")
    if has != (channels, classes, None):
        raise CheckpointError(
            f"unet/config.json has {has[0]} further channels, {has[1]} classes and a vector of {has[2]}; the pipeline "
            f"gives {channels} channels and {classes} classes, and no vector"
        )


def _noised_low_res(index: Words, channels: int, words: Words) -> Part:
    where = "low_res_scheduler/scheduler_config.json"
    if words.get("beta_schedule") != "scaled_linear":
        raise CheckpointError(
            f"{where} says beta_schedule={words.get('beta_schedule')!r:.80}, expected 'scaled_linear'"
        )
    levels = count(where, {"num_train_timesteps": 1000, **words}, "num_train_timesteps")
    betas: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02, **words}
    return Part(
        "noised-low-res",
        {
            "channels": channels,
            "levels": levels,
            "trained_below": min(
                count("model_index.json", {"max_noise_level": 350, **index}, "max_noise_level"), levels
            ),
            "start": number(where, betas, "beta_start"),
            "end": number(where, betas, "beta_end"),
        },
    )


UPSCALER = "StableDiffusionUpscalePipeline"
_PIPELINES: Mapping[frozenset[str], str] = {
    frozenset(): "LDMPipeline",
    frozenset({"bert-text"}): "LDMTextToImagePipeline",
    frozenset({"low-res"}): "LDMSuperResolutionPipeline",
    frozenset({"clip-text"}): "StableDiffusionPipeline",
    frozenset({"clip-text", "masked-image"}): "StableDiffusionInpaintPipeline",
    frozenset({"clip-text", "noised-low-res"}): UPSCALER,
}
"""What the sources are -> the pipeline that tells a network the same."""


def pipeline_of(sources: Mapping[str, Source]) -> str:
    """The pipeline whose folder holds a model with these sources.

    Raises:
        CompositionError: there is none, or it uses them otherwise.
    """
    kinds = [source.part.name.partition("@")[0] for source in sources.values()]
    name = _PIPELINES.get(frozenset(kinds))
    if name is None or len(kinds) != len(set(kinds)):
        raise CompositionError(
            f"a model with the conditioners {kinds} has no form in diffusers, which has pipelines for "
            f"{[sorted(known) for known in _PIPELINES]}"
        )
    for kind, source in zip(kinds, sources.values(), strict=True):
        if source.guided != kind.endswith("-text"):
            raise CompositionError(f"conditioner '{kind}' with guided={source.guided} has no form in diffusers' {name}")
        if kind == "masked-image" and not _as_published(source.part):
            raise CompositionError(
                f"conditioner 'masked-image' with {dict(source.part.options)} has no form in diffusers, whose "
                f"inpainting models are told {MASKED_IMAGE}"
            )
    return name


def _as_published(part: Part) -> bool:
    """Whether a masked-image conditioner follows Stable Diffusion's convention; the options at their default count."""
    default = {"order": ["latent", "mask"], "mask_range": [-1.0, 1.0], "hole": -1.0}
    said = {**default, **part.options}
    return all(said[word] == value for word, value in MASKED_IMAGE.items() if word != "channels")


def low_res_words(part: Part) -> dict[str, Any]:
    """The words of the ``low_res_scheduler`` of a noised-low-res conditioner."""
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": part.options.get("levels", 1000),
        "beta_schedule": "scaled_linear",
        "beta_start": part.options.get("start", 1e-4),
        "beta_end": part.options.get("end", 2e-2),
    }
