"""Examples of every built-in component: at least one each, and one per option that changes what is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldmkit.parts import Part
from ldmkit.recipes import PUBLISHED
from ldmkit.testing.example import Example
from ldmkit.testing.guidance_examples import GUIDANCES
from ldmkit.testing.values import Inputs


def examples(kind: str, name: str) -> tuple[Example, ...]:
    """The examples of one built-in; empty for a component that is none."""
    return tuple(example for example in BUILTIN if (example.kind, example.name) == (kind, name))


_SMALL: dict[str, Any] = {
    "channels": 2,
    "base_channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "resolution": 8,
    "scale": 0.5,
}
_CODES = {**_SMALL, "codebook_size": 16}


def _vq_loss(vq: Any, inputs: Inputs) -> Tensor:  # noqa: ANN401
    """Reconstruction and codebook: what reaches every parameter of a VQ model."""
    reconstruction, quantized = vq(inputs["image"])
    loss: Tensor = (reconstruction - inputs["image"]).square().mean() + quantized.loss.mean()
    return loss


_FIRST_STAGES = (
    Example("first-stage", "kl", {**_SMALL, "z_channels": 3, "attn_resolutions": (4,)}),
    Example(
        "first-stage",
        "kl",
        {**_SMALL, "attention": False, "channel_mult": (1, 1, 1), "image_channels": 1, "dropout": 0.1},
        label="factor 4",
    ),
    Example("first-stage", "vq", _CODES, loss=_vq_loss),
    Example(
        "first-stage", "vq", {**_CODES, "beta_on": "commitment", "z_channels": 3}, label="commitment", loss=_vq_loss
    ),
    Example("first-stage", "pixel"),
    Example("first-stage", "pixel", {"channels": 1, "scale": 0.5}, label="scaled"),
    Example("first-stage", "tiled", {"of": Part("kl", _SMALL, "first-stage"), "tile": 8, "overlap": 4}),
    Example(
        "first-stage",
        "tiled-exact",
        {"of": Part("kl", _SMALL, "first-stage"), "tile": 3},
        expected={"compiling-changes-nothing": "it walks over windows layer by layer, in Python"},
    ),
)


_TINY: dict[str, Any] = {
    "channels": 3,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "num_heads": 2,
}
_UNETS: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "context": {"context_dim": 8},
    "label": {"num_classes": 4, "resblock_updown": True, "scale_shift_norm": True},
    "vector and concat": {"vector_dim": 5, "concat_channels": 2, "qkv_first": True, "conv_resample": False},
    "context, label and concat": {
        "context_dim": 8,
        "num_classes": 4,
        "concat_channels": 1,
        "linear_projections": True,
        "disable_self_attention": (True, True),
        "dropout": 0.1,
        "checkpoint": True,
    },
}
_BACKBONES = tuple(Example("backbone", "unet", {**_TINY, **options}, label) for label, options in _UNETS.items())


def _labels(n: int) -> Inputs:
    return {"label": torch.arange(n) % 4}


def _tokens(n: int) -> Inputs:
    return {"tokens": torch.randint(11, (n, 6))}


def _boxes(n: int) -> Inputs:
    return {"boxes": [[(i % 3, 0.1, 0.2, 0.5, 0.9), (1, 0.0, 0.1 * i, 1.0, 0.8)][: 1 + i % 2] for i in range(n)]}


def _cropped_boxes(n: int) -> Inputs:
    return {**_boxes(n), "crop": [(0.1 * i, 0.0, 1.0, 1.0) for i in range(n)]}


def _points(n: int) -> Inputs:
    return {"points": [[(i % 3, 0.1 * i, 0.5)] for i in range(n)]}


def _labelled_pixels(n: int) -> Inputs:
    return {"segmentation": torch.randint(5, (n, 8, 4))}


def _soft_labels(n: int) -> Inputs:
    return {"segmentation": torch.rand(n, 5, 8, 4).softmax(1)}


def _low_res(n: int) -> Inputs:
    return {"low_res": torch.rand(n, 3, 4, 2) * 2 - 1}


def _hidden(n: int) -> Inputs:
    return {"masked_image_latent": torch.randn(n, 3, 4, 2), "mask": (torch.rand(n, 1, 8, 4) < 0.5).float()}


def _noised(n: int) -> Inputs:
    return {**_low_res(n), "noise_level": torch.arange(n) * 3, "low_res_noise": torch.randn(n, 3, 4, 2)}


def _noised_embeddings(n: int) -> Inputs:
    levels = torch.arange(n) * 300 % 1000
    embedding, noise = torch.randn(n, 4), torch.randn(n, 4)
    return {"image_embedding": embedding, "image_embedding_level": levels, "image_embedding_noise": noise}


def _named_boxes(n: int) -> Inputs:
    return {"boxes": [[(_NAMES[i % 4], 10 * i, 20, 100, 200)] for i in range(n)], "box_size": (240, 320)}


def _pictures(n: int) -> Inputs:
    return {"image": [Image.fromarray(pixels) for pixels in torch.randint(256, (n, 6, 4, 3)).byte().numpy()]}


def _noised_pictures(n: int) -> Inputs:
    return {**_pictures(n), "noise_level": list(range(n))}


def _masked_pictures(n: int) -> Inputs:
    return {**_pictures(n), "mask_image": torch.rand(n, 6, 4)}


def _embeddings(*shape: int) -> Callable[[int], Inputs]:
    return lambda n: {"embedding": torch.randn(n, *shape)}


_LAYOUT = {"classes": 3, "width": 8, "depth": 1, "tokens": 64, "max_objects": 2, "heads": 2, "head_width": 4}
_TEXT = {"vocabulary": 11, "length": 6, "width": 8, "depth": 1, "heads": 2, "head_width": 4}
_STABLE_DIFFUSION = {"channels": 3, "order": ("mask", "latent"), "mask_range": (0.0, 1.0), "hole": 0.0}
_NAMES = ("cat", "dog", "cow", "owl")

_CONDITIONERS = (
    Example("conditioner", "class-label", {"classes": 4, "width": 8, "names": _NAMES}, "context", batch=_labels),
    Example("conditioner", "class-label", {"classes": 4, "width": 8, "slot": "vector"}, "vector", batch=_labels),
    Example(
        "conditioner",
        "class-label",
        {"classes": 4, "width": 8, "null_class": False},
        "without a null",
        batch=_labels,
    ),
    Example("conditioner", "class-index", {"classes": 4}, batch=_labels),
    Example(
        "conditioner",
        "class-index",
        {"classes": 4, "null_class": False},
        "without a null",
        batch=_labels,
    ),
    Example("conditioner", "tokens", {**_TEXT, "null_tokens": (1, 2, 0, 0, 0, 0)}, batch=_tokens),
    Example("conditioner", "tokens", _TEXT, "without a null", batch=_tokens),
    Example("conditioner", "layout", _LAYOUT, "boxes", batch=_boxes),
    Example("conditioner", "layout", _LAYOUT, "boxes with crops", batch=_cropped_boxes, keeps=("crop",)),
    Example("conditioner", "layout", {**_LAYOUT, "objects": "points", "crop_tokens": False}, "points", batch=_points),
    Example("conditioner", "semantic-map", {"classes": 5, "channels": 3, "stages": 1}, batch=_labelled_pixels),
    Example(
        "conditioner", "semantic-map", {"classes": 5, "channels": 3, "stages": 2}, "soft labels", batch=_soft_labels
    ),
    Example("conditioner", "low-res", batch=_low_res),
    Example("conditioner", "depth", {"factor": 2}, batch=lambda n: {"depth": torch.rand(n, 1, 8, 4) + 1}),
    Example(
        "conditioner",
        "noised-embedding",
        {"size": 4},
        "without noise",
        batch=lambda n: {"image_embedding": torch.randn(n, 4)},
    ),
    Example(
        "conditioner",
        "noised-embedding",
        {"size": 4, "mean": (0.5, 0.0, -1.0, 2.0), "std": (1.0, 2.0, 0.5, 1.0)},
        "with statistics",
        batch=_noised_embeddings,
    ),
    Example("conditioner", "noised-low-res", {"levels": 9, "trained_below": 5}, batch=_noised, keeps=("noise_level",)),
    Example("conditioner", "masked-image", {"channels": 3}, batch=_hidden),
    Example("conditioner", "masked-image", _STABLE_DIFFUSION, "Stable Diffusion", batch=_hidden),
    *(
        Example("conditioner", "precomputed", {"key": "embedding", "slot": slot, "size": 3}, slot, batch=batch)
        for slot, batch in {
            "context": _embeddings(4, 3),
            "vector": _embeddings(3),
            "concat": _embeddings(3, 4, 2),
        }.items()
    ),
)


_BEYOND = "log(sigma) is drawn from a normal distribution, which has no ends"

_PROCESSES = (
    Example("process", "vp"),
    Example("process", "vp", {"betas": "linear"}, "linear"),
    Example("process", "vp", {"betas": "sqrt"}, "sqrt"),
    Example("process", "vp", {"betas": "cosine"}, "cosine"),
    Example("process", "vp", {"zero_terminal_snr": True, "steps": 100}, "zero terminal SNR"),
    Example("process", "rectified-flow"),
    Example("process", "rectified-flow", {"steps": 1}, "unit time"),
    Example("process", "edm", expected={"training-times-lie-in-its-range": _BEYOND}),
)

_SAMPLERS = (
    Example("sampler", "ddim"),
    Example("sampler", "ddim", {"eta": 1.0}, "ancestral"),
    Example("sampler", "ddim", {"eta": 0.5}, "half"),
    Example("sampler", "ddpm"),
    Example("sampler", "ddpm", {"upper_variance": 1.0}, "upper variance"),
    Example("sampler", "plms", single_step=False),
    Example("sampler", "euler"),
    Example("sampler", "euler-ancestral"),
    Example("sampler", "euler-ancestral", {"eta": 0.0}, "without noise"),
    Example("sampler", "heun"),
    Example("sampler", "dpmpp-2m", single_step=False),
    Example("sampler", "dpmpp-2s"),
    Example("sampler", "dpmpp-2m-sde", single_step=False),
    Example("sampler", "dpmpp-2m-sde", {"eta": 0.0}, "without noise", single_step=False),
    Example("sampler", "unipc", single_step=False),
    Example("sampler", "unipc", {"solver_order": 3}, "order 3", single_step=False),
    Example("sampler", "ddim-inversion"),
    Example("sampler", "ddim-inversion", {"iterations": 2}, "two iterations"),
)


_OTHERS = (Example("recipe", "digits"), *(Example("recipe", name) for name in PUBLISHED))

_TASKS = (
    Example("task", "unconditional"),
    Example("task", "class-conditional", batch=_labels),
    Example("task", "class-conditional", label="a list", batch=lambda n: {"label": list(range(n))}),
    Example(
        "task",
        "class-conditional",
        {"classes": 4, "names": _NAMES},
        "names",
        batch=lambda n: {"label": [_NAMES[i % 4] for i in range(n)]},
    ),
    Example("task", "text-to-image", batch=lambda n: {"prompt": [f"{i} cats" for i in range(n)]}),
    Example("task", "layout-to-image", batch=_boxes),
    Example("task", "layout-to-image", {"classes": 3}, "crops", batch=_cropped_boxes),
    Example("task", "layout-to-image", {"objects": "points", "crops": False}, "points", batch=_points),
    Example("task", "layout-to-image", {"classes": 4, "names": _NAMES}, "named boxes in pixels", batch=_named_boxes),
    Example("task", "semantic-synthesis", {"classes": 5}, batch=_labelled_pixels),
    Example("task", "semantic-synthesis", label="soft labels", batch=_soft_labels),
    Example("task", "super-resolution", batch=_pictures),
    Example("task", "super-resolution", {"noise_levels": 9}, "noised", batch=_noised_pictures),
    Example("task", "inpainting", {"hole": -1.0}, batch=_masked_pictures),
    Example(
        "task", "inpainting", {"hole": 0.0, "channels": 1, "background": (0.0, 0.0, 0.0)}, "grey", _masked_pictures
    ),
    Example("task", "inpainting", label="any model", batch=_masked_pictures),
    Example("task", "outpainting", {"hole": -1.0}, batch=lambda n: {**_pictures(n), "left": 3, "expand": 1}),
    Example("task", "depth-to-image", batch=lambda n: {"depth_map": torch.rand(n, 6, 4)}),
    Example("task", "embedding-to-image", batch=lambda n: {"embedding": torch.rand(n, 2, 4)}),
    Example(
        "task", "embedding-to-image", {"tokens": False}, "a vector", batch=lambda n: {"embedding": torch.rand(n, 4)}
    ),
    Example("task", "image-variation", batch=lambda n: {"image_embedding": torch.rand(n, 4)}),
    Example("task", "image-to-image", batch=lambda n: {**_pictures(n), "strength": 0.5}),
)

BUILTIN: tuple[Example, ...] = (
    *_FIRST_STAGES,
    *_BACKBONES,
    *_CONDITIONERS,
    *_PROCESSES,
    *_SAMPLERS,
    *GUIDANCES,
    *_OTHERS,
    *_TASKS,
)
"""Every built-in has its place here; a test holds the table to the registry."""
