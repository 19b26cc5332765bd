"""The original's configuration files as recipes, through one table of class names.

A configuration says what **today's** original code builds. For four published models that is another network than the
one that was trained: their ``num_head_channels`` beside a transformer was not read by the code of that time.
:func:`published_with_one_head` tells them, and the importer asks which of the two is meant.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from ldmkit.errors import CheckpointError
from ldmkit.parts import Part, Recipe, Source
from ldmkit.recipes.cross_attention import cin256, layout2img_openimages256, text2img256
from ldmkit.recipes.stable_diffusion_1 import sd_1
from ldmkit.weights.config_words import Words, parsed

MODELS = (
    "ldm.models.diffusion.ddpm.LatentDiffusion",
    "ldm.models.diffusion.ddpm.Layout2ImgDiffusion",
    "ldm.models.diffusion.ddpm.LatentInpaintDiffusion",
)
UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
ONE_HEAD: Mapping[str, Callable[[], Recipe]] = {
    "cin256": cin256,
    "text2img256": text2img256,
    "layout2img-openimages256": layout2img_openimages256,
}
"""The published models whose configuration means another network today; a fourth, cin-ldm-vq-f8, equals cin256."""

_BETAS = {"linear": "scaled-linear", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine"}
_TRAINING = (
    *("base_learning_rate", "log_every_t", "first_stage_key", "image_size", "channels", "cond_stage_trainable"),
    *("monitor", "use_ema", "ckpt_path", "ignore_keys", "load_only_unet", "scheduler_config", "clip_denoised"),
    *("use_positional_encodings", "logvar_init", "v_posterior", "scale_by_std", "cond_stage_forward", "concat_keys"),
    *("finetune_keys", "keep_finetune_dims", "make_it_fit", "reset_ema", "reset_num_ema_updates"),
    *("keep_num_ema_updates", "masked_image_key"),
)
_AUTOENCODER_TRAINING = (
    *("lossconfig", "monitor", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "batch_resize_range"),
    *("scheduler_config", "lr_g_factor", "use_ema", "sane_index_shape"),
)


def recipe_from_config(path: str | os.PathLike[str]) -> Recipe:
    """The recipe of an original configuration file, taken at its word.

    Args:
        path: the YAML file; its ``model`` is read, and no other file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: no configuration of a latent diffusion model, a class that is in no table, or a word that
            ldmkit does not know.
    """
    model = Words("model", parsed(path).get("model"))
    target = _listed("model", model.text("target", ""), MODELS)
    return _model(model.block("params"), inpainting=target.endswith("LatentInpaintDiffusion"))


def published_with_one_head(recipe: Recipe) -> str | None:
    """The published model that has this first stage and network but for its heads: one, and not ``C // 32``."""
    for name, published in ONE_HEAD.items():
        ours, theirs = _without_heads(recipe), _without_heads(published())
        if ours == theirs and recipe.backbone.options.get("num_heads") != 1:
            return name
    return None


def _without_heads(recipe: Recipe) -> tuple[object, ...]:
    """What decides the tensors of a model but its conditioner's, with defaults left out."""
    stage = {key: value for key, value in recipe.first_stage.options.items() if value is not True and value != []}
    network = recipe.backbone.options
    heads = ("num_heads", "head_channels")
    return (
        (recipe.first_stage.name, {**stage, "scale": stage.get("scale", 1.0)}),
        {key: value for key, value in network.items() if key not in heads},
    )


def _listed(what: str, target: str, known: Collection[str]) -> str:
    """A class name out of a table."""
    if target not in known:
        raise CheckpointError(
            f"the configuration's {what} has the target '{target:.100}', which ldmkit does not know; it knows "
            f"{', '.join(sorted(known))}. Compose the model with a Recipe, and import it with recipe="
        )
    return target


def _model(words: Words, inpainting: bool) -> Recipe:
    """The block of the diffusion model."""
    words.ignore(_TRAINING)
    words.only("num_timesteps_cond", 1, None)
    scale = words.number("scale_factor", 1.0)
    stage = _first_stage(words.block("first_stage_config"), scale)
    network, accepts = _unet(words.block("unet_config"))
    sources = _sources(words, stage, accepts, inpainting)
    prediction = words.text("parameterization", "eps")
    if prediction not in ("eps", "x0", "v"):
        raise words.error("parameterization", prediction, "'eps', 'x0' or 'v'")
    process = _process(words)
    objective = _objective(words, process)
    words.end()
    return Recipe(stage, network, process, prediction, sources, objective)


def _process(words: Words) -> Part:
    words.only("given_betas", None)
    words.only("cosine_s", 8e-3)
    name = words.text("beta_schedule", "linear")
    if name not in _BETAS:
        raise words.error("beta_schedule", name, f"one of {list(_BETAS)}")
    start, end = words.number("linear_start", 1e-4), words.number("linear_end", 2e-2)
    ends = {} if name == "cosine" else {"start": start, "end": end}
    betas = {} if name == "linear" else {"betas": _BETAS[name]}
    steps = words.count("timesteps", 1000)
    return Part("vp", {**betas, **({} if steps == 1000 else {"steps": steps}), **ends})


def _objective(words: Words, process: Part) -> dict[str, Any]:
    norm = words.text("loss_type", "l2")
    if norm not in ("l1", "l2"):
        raise words.error("loss_type", norm, "'l1' or 'l2'")
    simple, elbo = words.number("l_simple_weight", 1.0), words.number("original_elbo_weight", 0.0)
    said: dict[str, Any] = {"norm": norm} if norm != "l2" else {}
    said |= {"simple_weight": simple} if simple != 1 else {}
    said |= {"elbo_weight": elbo} if elbo else {}
    if words.flag("learn_logvar"):
        said |= {"learn_log_variance": True, "times": process.options.get("steps", 1000)}
    return said


def _first_stage(words: Words, scale: float) -> Part:
    """The block of the autoencoder."""
    known = {f"ldm.models.autoencoder.{name}": name for name in ("AutoencoderKL", "VQModel", "VQModelInterface")}
    name = known[_listed("first_stage_config", words.text("target", ""), known)]
    params = words.block("params")
    params.ignore(_AUTOENCODER_TRAINING)
    network = params.block("ddconfig")
    quantised = name != "AutoencoderKL"
    channels = {"channels": params.count("embed_dim")}
    codes = {"codebook_size": params.count("n_embed", most=2**24)} if quantised else {}
    params.only("remap", None)
    options = {**channels, **codes, **_autoencoder(network, double=not quantised), "scale": scale}
    params.end()
    words.end()
    return Part("vq" if quantised else "kl", options)


def _autoencoder(words: Words, double: bool) -> dict[str, Any]:
    """Encoder and decoder."""
    words.only("double_z", double)
    words.only("resamp_with_conv", True)
    words.only("tanh_out", False)
    words.only("use_linear_attn", False)
    kind = words.text("attn_type", "vanilla")
    if kind not in ("vanilla", "vanilla-xformers", "none"):
        raise words.error("attn_type", kind, "'vanilla' or 'none'")
    images = words.count("in_channels", 3)
    words.only("out_ch", images)
    # The published networks are built at 256, which is where their resolutions of attention count from.
    said: dict[str, Any] = {
        "z_channels": words.count("z_channels"),
        "channel_mult": words.counts("ch_mult", most=64),
        "attn_resolutions": words.counts("attn_resolutions", [], most=2**16),
    }
    sizes = {
        "base_channels": (words.count("ch", 128), 128),
        "num_res_blocks": (words.count("num_res_blocks", 2, most=32), 2),
        "resolution": (words.count("resolution", 256), 256),
        "image_channels": (images, 3),
        "dropout": (words.number("dropout", 0.0), 0.0),
        "attention": (kind != "none", True),
    }
    words.end()
    return {**said, **{key: value for key, (value, default) in sizes.items() if value != default}}


def _unet(words: Words) -> tuple[Part, dict[str, int | None]]:
    """The block of the network; and what it reads, by slot."""
    _listed("unet_config", words.text("target", ""), [UNET])
    params = words.block("params")
    params.ignore(("image_size", "use_checkpoint", "use_fp16", "legacy", "num_heads_upsample"))
    for word, value in {"dims": 2, "num_classes": None, "n_embed": None, "adm_in_channels": None}.items():
        params.only(word, value)
    channels = params.count("out_channels")
    concat = params.count("in_channels") - channels
    if concat < 0:
        raise params.error("in_channels", concat + channels, f"at least the {channels} of out_channels")
    options: dict[str, Any] = {
        "channels": channels,
        "model_channels": params.count("model_channels"),
        "channel_mult": params.counts("channel_mult", (1, 2, 4, 8), most=64),
        "num_res_blocks": params.count("num_res_blocks", most=32),
        "attention_resolutions": params.counts("attention_resolutions"),
        **_heads(params),
        **({"concat_channels": concat} if concat else {}),
    }
    transformer = params.flag("use_spatial_transformer")
    context = params.take("context_dim") if not transformer else params.count("context_dim")
    if not transformer and context is not None:
        raise params.error("context_dim", context, "nothing without use_spatial_transformer")
    if transformer:
        options |= _transformer(params) | {"context_dim": context}
    flags = {"scale_shift_norm": "use_scale_shift_norm", "resblock_updown": "resblock_updown"}
    options |= {ours: True for ours, theirs in flags.items() if params.flag(theirs)}
    options |= {"qkv_first": True} if params.flag("use_new_attention_order") else {}
    options |= {} if params.flag("conv_resample", True) else {"conv_resample": False}
    dropout = params.number("dropout", 0.0)
    options |= {"dropout": dropout} if dropout else {}
    params.end()
    words.end()
    return Part("unet", options), {"context": options.get("context_dim"), "concat": concat or None}


def _heads(words: Words) -> dict[str, int]:
    """As today's code counts: the width of a head, where it is given, else their number."""
    if words.left.get("num_head_channels", -1) != -1:
        words.ignore(("num_heads",))
        return {"head_channels": words.count("num_head_channels")}
    words.ignore(("num_head_channels",))
    return {"num_heads": words.count("num_heads")}


def _transformer(words: Words) -> dict[str, Any]:
    depth: int | list[int]
    if isinstance(words.left.get("transformer_depth"), list):
        depth = words.counts("transformer_depth", most=32)
    else:
        depth = words.count("transformer_depth", 1, most=32)
    said: dict[str, Any] = {} if depth == 1 else {"transformer_depth": depth}
    said |= {"linear_projections": True} if words.flag("use_linear_in_transformer") else {}
    words.only("disable_self_attentions", None)
    return said


def _sources(words: Words, stage: Part, accepts: Mapping[str, int | None], inpainting: bool) -> dict[str, Source]:
    """The conditioner, and how its condition reaches the network."""
    config, key = words.take("cond_stage_config", "__is_unconditional__"), words.text("cond_stage_key", "image")
    way = words.take("conditioning_key")
    concat = words.flag("concat_mode", True)
    if config == "__is_unconditional__":
        return {}
    way = ("concat" if concat else "crossattn") if way is None else way
    if way not in ("concat", "crossattn", "hybrid"):
        raise words.error("conditioning_key", way, "'concat', 'crossattn' or 'hybrid'")
    channels = int(stage.options["channels"])
    if config == "__is_first_stage__":
        hidden = {"channels": channels, "order": ["latent", "mask"], "mask_range": [-1.0, 1.0], "hole": -1.0}
        return {"masked_image": Source(Part("masked-image", hidden), guided=False)}
    block = Words("cond_stage_config", config)
    target = _listed("cond_stage_config", block.text("target", ""), CONDITIONERS)
    params = block.block("params", {})
    name, source = CONDITIONERS[target](params, key, accepts)
    params.end()
    block.end()
    if way == "hybrid" and not inpainting:
        raise words.error("conditioning_key", way, "'hybrid' with LatentInpaintDiffusion")
    masked = {"channels": channels, "order": ["mask", "latent"], "mask_range": [0.0, 1.0], "hole": 0.0}
    further = {"masked_image": Source(Part("masked-image", masked), guided=False)} if inpainting else {}
    return {name: source, **further}


Made: TypeAlias = tuple[str, Source]
Accepts: TypeAlias = Mapping[str, int | None]


def _class(words: Words, key: str, accepts: Accepts) -> Made:
    """A table of classes; 1001 of them are ImageNet's and the null class, as published."""
    rows, width = words.count("n_classes", 1000), words.count("embed_dim")
    words.ignore(("key",))
    null = rows == 1001
    options = {"classes": rows - null, "width": width, **({} if null else {"null_class": False})}
    return "label", Source(Part("class-label", options), guided=null)


def _bert(words: Words, key: str, accepts: Accepts) -> Made:
    """A transformer on words, or on tokens that the data set makes."""
    width, depth = words.count("n_embed"), words.count("n_layer", most=128)
    rows, length = words.count("vocab_size", 30522), words.count("max_seq_len", 77)
    words.ignore(("device", "embedding_dropout"))
    if words.flag("use_tokenizer", True):
        options = {"width": width, "depth": depth, "vocabulary": rows, **({} if length == 77 else {"length": length})}
        return "text", Source(Part("bert-text", options))
    return "tokens", Source(
        Part("tokens", {"vocabulary": rows, "length": length, "width": width, "depth": depth}), guided=False
    )


def _clip(words: Words, key: str, accepts: Accepts) -> Made:
    """The text tower of OpenAI's ViT-L/14."""
    words.only("version", "openai/clip-vit-large-patch14")
    words.only("max_length", 77)
    words.only("layer", "last")
    words.ignore(("device", "freeze"))
    return "text", sd_1().sources["text"]


def _open_clip(words: Words, key: str, accepts: Accepts) -> Made:
    """The text tower of OpenCLIP's ViT-H-14, of which the last layer or the one before is read."""
    words.only("arch", "ViT-H-14")
    words.only("max_length", 77)
    layer = words.text("layer", "last")
    if layer not in ("last", "penultimate"):
        raise words.error("layer", layer, "'last' or 'penultimate'")
    words.ignore(("device", "freeze", "version"))
    context = {"last": "last", "penultimate": "penultimate-norm"}[layer]
    return "text", Source(Part("openclip-text", {"architecture": "ViT-H-14", "context": context}))


def _segmentation(words: Words, key: str, accepts: Accepts) -> Made:
    """A map of labels, made smaller and projected."""
    stages, labels = words.count("n_stages", 1, most=8), words.count("in_channels")
    words.only("method", "bilinear")
    words.only("multiplier", 0.5)
    words.only("bias", False)
    options = {"classes": labels, "channels": words.count("out_channels"), "stages": stages}
    return "segmentation", Source(Part("semantic-map", options), guided=False)


def _identity(words: Words, key: str, accepts: Accepts) -> Made:
    """A picture as channels, or embeddings as context, as they are."""
    if channels := accepts["concat"]:
        return "low_res", Source(Part("low-res", {"channels": channels}), guided=False)
    options = {"key": "embedding", "slot": "context", "size": accepts["context"]}
    return "embedding", Source(Part("precomputed", options))


_ENCODERS = "ldm.modules.encoders.modules"
CONDITIONERS: Mapping[str, Callable[[Words, str, Accepts], Made]] = {
    f"{_ENCODERS}.ClassEmbedder": _class,
    f"{_ENCODERS}.BERTEmbedder": _bert,
    f"{_ENCODERS}.FrozenCLIPEmbedder": _clip,
    f"{_ENCODERS}.FrozenOpenCLIPEmbedder": _open_clip,
    f"{_ENCODERS}.SpatialRescaler": _segmentation,
    "torch.nn.Identity": _identity,
}
"""The original's classes -> what makes ours of their words."""
