"""The original's YAML files are read as words: what they mean is in a table, and nothing they name is imported."""

import copy
import os
import sys

import pytest
import torch
import yaml

from ldmkit.errors import CheckpointError
from ldmkit.recipes import concatenation, cross_attention, stable_diffusion_1, stable_diffusion_2, unconditional
from ldmkit.weights.config import ONE_HEAD as PUBLISHED_WITH_ONE_HEAD
from ldmkit.weights.config import published_with_one_head, recipe_from_config
from ldmkit.weights.importing import import_checkpoint
from ldmkit.weights.original import original_names

ENCODERS = "ldm.modules.encoders.modules"
DDPM = "ldm.models.diffusion.ddpm"


def autoencoder(kind, embed, mults, n_embed=None, attn=(), **further):
    """A block of a first stage as the published files have it."""
    network = {
        "double_z": kind == "AutoencoderKL",
        "z_channels": embed,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": mults,
        "num_res_blocks": 2,
        "attn_resolutions": list(attn),
        "dropout": 0.0,
        **further,
    }
    words = {"embed_dim": embed, "ddconfig": network, "lossconfig": {"target": "torch.nn.Identity"}}
    words |= {"monitor": "val/rec_loss"} if n_embed is None else {"n_embed": n_embed}
    return {"target": f"ldm.models.autoencoder.{kind}", "params": words}


VQ_F4 = autoencoder("VQModelInterface", 3, [1, 2, 4], 8192)
VQ_F8 = autoencoder("VQModelInterface", 4, [1, 2, 2, 4], 16384, [32])
KL_F8 = autoencoder("AutoencoderKL", 4, [1, 2, 4, 4])


def unet(channels, model_channels, mults, attn, given=None, **further):
    """A block of a network."""
    words = {"image_size": 64, "in_channels": given or channels, "out_channels": channels, "num_res_blocks": 2}
    words |= {"model_channels": model_channels, "channel_mult": mults, "attention_resolutions": attn, **further}
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": words}


def config(start, end, stage, network, conditioner="__is_unconditional__", model="LatentDiffusion", **further):
    """A whole configuration, with the sections that do not say how a model is composed."""
    words = {
        "linear_start": start,
        "linear_end": end,
        "timesteps": 1000,
        "log_every_t": 200,
        "num_timesteps_cond": 1,
        "first_stage_key": "image",
        "image_size": 64,
        "channels": 3,
        "monitor": "val/loss_simple_ema",
        "unet_config": network,
        "first_stage_config": stage,
        "cond_stage_config": conditioner,
        **further,
    }
    model = {"base_learning_rate": 1e-6, "target": f"{DDPM}.{model}", "params": words}
    return {"model": model, "data": {"target": "main.DataModuleFromConfig"}, "lightning": {"trainer": {"gpus": 8}}}


def encoder(name, **words):
    """A block of a conditioner."""
    return {"target": f"{ENCODERS}.{name}", "params": words} if words else {"target": f"{ENCODERS}.{name}"}


TRANSFORMER = {"use_spatial_transformer": True, "transformer_depth": 1}
TEXT = {"cond_stage_key": "caption", "conditioning_key": "crossattn", "cond_stage_trainable": True}
SD = {"cond_stage_key": "txt", "first_stage_key": "jpg", "use_ema": False, "scale_factor": 0.18215}
SD_UNET = {**TRANSFORMER, "use_checkpoint": True, "legacy": False}
OPEN_CLIP = encoder("FrozenOpenCLIPEmbedder", freeze=True, layer="penultimate")
CONCAT = {"concat_mode": True}
WIDE = [1, 2, 4, 4]
PUBLISHED = {
    "celebahq": (
        unconditional.celebahq,
        config(0.0015, 0.0195, VQ_F4, unet(3, 224, [1, 2, 3, 4], [8, 4, 2], num_head_channels=32)),
    ),
    "lsun-churches": (
        unconditional.lsun_churches,
        config(
            *(0.0015, 0.0155, KL_F8),
            unet(4, 192, [1, 2, 2, 4, 4], [1, 2, 4, 8], num_heads=8, use_scale_shift_norm=True, resblock_updown=True),
            loss_type="l1",
            scale_by_std=True,
            scheduler_config={"target": "ldm.lr_scheduler.Any"},
        ),
    ),
    "bsr-sr": (
        concatenation.bsr_sr,
        config(
            *(0.0015, 0.0155, VQ_F4, unet(3, 160, [1, 2, 2, 4], [16, 8], given=6, num_head_channels=32)),
            {"target": "torch.nn.Identity"},
            **{"cond_stage_key": "LR_image", **CONCAT},
        ),
    ),
    "semantic-synthesis256": (
        concatenation.semantic_synthesis256,
        config(
            *(0.0015, 0.0205, VQ_F4, unet(3, 128, [1, 4, 8], [32, 16, 8], given=6, num_heads=8)),
            encoder("SpatialRescaler", n_stages=2, in_channels=182, out_channels=3),
            **{"cond_stage_key": "segmentation", "loss_type": "l1", **CONCAT},
        ),
    ),
    "inpainting-big": (
        concatenation.inpainting_big,
        config(
            *(0.0015, 0.0205),
            autoencoder("VQModelInterface", 3, [1, 2, 4], 8192, attn_type="none"),
            unet(3, 256, [1, 2, 3, 4], [8, 4, 2], given=7, num_heads=8, resblock_updown=True),
            "__is_first_stage__",
            **{"cond_stage_key": "masked_image", "loss_type": "l1", **CONCAT},
        ),
    ),
    "cin256-v2": (
        cross_attention.cin256_v2,
        config(
            *(0.0015, 0.0195, VQ_F4),
            unet(3, 192, [1, 2, 3, 5], [8, 4, 2], num_heads=1, context_dim=512, **TRANSFORMER),
            encoder("ClassEmbedder", n_classes=1001, embed_dim=512, key="class_label"),
            cond_stage_key="class_label",
            conditioning_key="crossattn",
            use_ema=False,
        ),
    ),
    "txt2img-1p4b": (
        cross_attention.txt2img_1p4b,
        config(
            *(0.00085, 0.012, KL_F8, unet(4, 320, WIDE, [4, 2, 1], num_heads=8, context_dim=1280, **SD_UNET)),
            encoder("BERTEmbedder", n_embed=1280, n_layer=32),
            **{**TEXT, "scale_factor": 0.18215, "use_ema": False},
        ),
    ),
    "sd-1": (
        stable_diffusion_1.sd_1,
        config(
            *(0.00085, 0.012, KL_F8, unet(4, 320, WIDE, [4, 2, 1], num_heads=8, context_dim=768, **SD_UNET)),
            encoder("FrozenCLIPEmbedder"),
            **{**SD, "conditioning_key": "crossattn"},
        ),
    ),
    "sd-2-v": (
        stable_diffusion_2.sd_2_v,
        config(
            *(0.00085, 0.012, KL_F8),
            unet(
                4,
                320,
                WIDE,
                [4, 2, 1],
                num_head_channels=64,
                context_dim=1024,
                use_linear_in_transformer=True,
                **SD_UNET,
            ),
            OPEN_CLIP,
            **{**SD, "conditioning_key": "crossattn", "parameterization": "v"},
        ),
    ),
    "sd-2-inpainting": (
        stable_diffusion_2.sd_2_inpainting,
        config(
            *(0.00085, 0.012, KL_F8),
            unet(
                *(4, 320, WIDE, [4, 2, 1], 9),
                **{"num_head_channels": 64, "context_dim": 1024, "use_linear_in_transformer": True, **SD_UNET},
            ),
            OPEN_CLIP,
            model="LatentInpaintDiffusion",
            **{**SD, "conditioning_key": "hybrid", "concat_keys": ["mask", "masked_image"], "finetune_keys": None},
        ),
    ),
}
ONE_HEAD = {
    "cin256": config(
        *(0.0015, 0.0195, VQ_F8),
        unet(4, 256, [1, 2, 4], [4, 2, 1], num_head_channels=32, context_dim=512, **TRANSFORMER),
        encoder("ClassEmbedder", embed_dim=512, key="class_label"),
        cond_stage_key="class_label",
        conditioning_key="crossattn",
    ),
    "text2img256": config(
        *(0.0015, 0.0195, VQ_F4),
        unet(3, 192, [1, 2, 3, 5], [8, 4, 2], num_head_channels=32, context_dim=640, **TRANSFORMER),
        encoder("BERTEmbedder", n_embed=640, n_layer=32),
        **TEXT,
    ),
    "layout2img-openimages256": config(
        *(0.0015, 0.0205, VQ_F4),
        unet(
            3,
            128,
            [1, 2, 3, 4],
            [8, 4, 2],
            num_head_channels=32,
            context_dim=512,
            **TRANSFORMER | {"transformer_depth": 3},
        ),
        encoder("BERTEmbedder", n_embed=512, n_layer=16, vocab_size=8192, max_seq_len=92, use_tokenizer=False),
        cond_stage_key="coordinates_bbox",
        conditioning_key="crossattn",
        loss_type="l1",
    ),
}


@pytest.fixture
def file(tmp_path):
    """Write a configuration; the path."""

    def write(values):
        text = values if isinstance(values, str) else yaml.safe_dump(values)
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml"

    return write


def plain(part):
    """A part without the options that are defaults."""
    return part.name, {key: value for key, value in part.options.items() if value is not True and value != []}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_its_recipe(file, name):
    published, values = PUBLISHED[name]
    read, recipe = recipe_from_config(file(values)), published()
    assert plain(read.first_stage) == plain(recipe.first_stage)
    assert plain(read.backbone) == plain(recipe.backbone)
    assert read.process == recipe.process
    assert (read.prediction, read.objective) == (recipe.prediction, recipe.objective)
    assert {n: (s.part, s.guided) for n, s in read.sources.items()} == {
        n: (s.part, s.guided) for n, s in recipe.sources.items()
    }
    assert published_with_one_head(read) is None


@pytest.mark.parametrize("name", ONE_HEAD)
def test_a_model_trained_with_one_head_is_not_imported_by_its_configuration_alone(file, tmp_path, name):
    path = file(ONE_HEAD[name])
    assert recipe_from_config(path).backbone.options["head_channels"] == 32
    assert published_with_one_head(recipe_from_config(path)) == name
    assert published_with_one_head(PUBLISHED_WITH_ONE_HEAD[name]()) is None
    torch.save({"weight": torch.ones(1)}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=rf"recipe='{name}'\).*recipe=recipe_from_config\("):
        import_checkpoint(tmp_path / "model.ckpt", config=path)


def test_a_configuration_composes_what_the_file_fills(file, tmp_path):
    small = autoencoder("VQModel", 3, [1, 2], 16)
    small["params"]["ddconfig"] |= {"ch": 32, "num_res_blocks": 1}
    network = unet(3, 32, [1], [1], num_heads=2, context_dim=8, **TRANSFORMER)
    network["params"]["num_res_blocks"] = 1
    label = encoder("ClassEmbedder", n_classes=5, embed_dim=8)
    path = file(
        config(0.0015, 0.0195, small, network, label, conditioning_key="crossattn", cond_stage_key="class_label")
    )
    model = recipe_from_config(path).build()
    ours = model.state_dict()
    torch.save({theirs: ours[name] for name, theirs in original_names(model).items()}, tmp_path / "model.ckpt")
    again = import_checkpoint(tmp_path / "model.ckpt", config=path).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in again.items())


def changed(path, value):
    """A published configuration with one word changed."""
    values = copy.deepcopy(PUBLISHED["cin256-v2"][1])
    *way, last = path.split(".")
    block = values
    for word in way:
        block = block[word]
    block[last] = value
    return values


PARAMS = "model.params"
NETWORK = f"{PARAMS}.unet_config.params"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.target", "subprocess.check_output", "'subprocess.check_output', which ldmkit does not know"),
        (f"{PARAMS}.unet_config.target", "os.system", "'os.system'"),
        (f"{PARAMS}.first_stage_config.target", "builtins.eval", "'builtins.eval'"),
        (f"{PARAMS}.cond_stage_config.target", "no_such_module_anywhere.X", "no_such_module_anywhere"),
        (f"{PARAMS}.surprise", 1, r"says \['surprise'\]"),
        (f"{NETWORK}.surprise", 1, r"unet_config.params says \['surprise'\]"),
        (f"{NETWORK}.model_channels", "${oc.env:SECRET}", "a whole number"),
        (f"{NETWORK}.model_channels", 10**9, "a whole number from 1 to 100000"),
        (f"{NETWORK}.model_channels", True, "a whole number"),
        (f"{NETWORK}.channel_mult", [1] * 17, "a list of at most 16"),
        (f"{NETWORK}.num_res_blocks", 10**6, "from 1 to 32"),
        (f"{NETWORK}.dims", 3, "nothing for another value"),
        (f"{NETWORK}.context_dim", None, "a whole number"),
        (f"{NETWORK}.in_channels", 1, "at least the 3 of out_channels"),
        (f"{PARAMS}.linear_start", float("nan"), "a number"),
        (f"{PARAMS}.linear_start", [1], "a number"),
        (f"{PARAMS}.beta_schedule", "exponential", "one of"),
        (f"{PARAMS}.conditioning_key", "adm", "'concat', 'crossattn' or 'hybrid'"),
        (f"{PARAMS}.parameterization", "flow", "'eps', 'x0' or 'v'"),
        (f"{PARAMS}.loss_type", "huber", "'l1' or 'l2'"),
        (f"{PARAMS}.first_stage_config.params.ddconfig.attn_type", "linear", "'vanilla' or 'none'"),
        (f"{PARAMS}.unet_config", "text", "is no mapping"),
    ],
)
def test_a_word_that_ldmkit_does_not_know_is_refused_by_name(file, path, value, message):
    with pytest.raises(CheckpointError, match=message):
        recipe_from_config(file(changed(path, value)))


def laughing():
    """Nine lines that unfold into a billion words."""
    lines = ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join([*lines, "model: *a9"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughing(), "refers to parts of itself"),
        ("model: !!python/object/apply:os.system ['touch executed']", "no YAML of plain values"),
        ("model: !!python/name:os.system", "no YAML of plain values"),
        ("[" * 60_000, "more than 500 brackets"),
        ("[" * 400, "no YAML of plain values"),
        ("- " * 30_000, "no YAML of plain values"),
        ("? " * 30_000, "no YAML of plain values"),
        ("&a " * 20_000, "no YAML of plain values"),
        ("model: [", "no YAML of plain values"),
        ("- 1", "is no mapping"),
        ("other: 1", "model is no mapping"),
        ("model: {1: 2}", "no mapping of words"),
        (f"model: {'9' * 5000}", "no YAML of plain values"),
        ("a: 1\n" * 20_000, "at most 65,536 bytes"),
        ("a: \x00", "no YAML of plain values"),
    ],
)
def test_hostile_yaml_is_one_error(file, text, message, tmp_path, monkeypatch):
    path = file(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        recipe_from_config(path)
    assert not (tmp_path / "executed").exists()


def test_no_target_is_imported_and_no_path_is_opened(file, tmp_path, monkeypatch):
    (tmp_path / "tripwire.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    opened = []
    watching = [True]
    sys.addaudithook(lambda event, given: opened.append(given[0]) if watching[0] and event == "open" else None)
    values = changed(f"{PARAMS}.ckpt_path", "/etc/passwd")
    values["model"]["params"]["first_stage_config"]["params"]["ckpt_path"] = str(tmp_path / "other.ckpt")
    path = file(values)
    recipe_from_config(path)
    with pytest.raises(CheckpointError, match="tripwire"):
        recipe_from_config(file(changed(f"{PARAMS}.cond_stage_config.target", "tripwire.X")))
    watching[0] = False
    assert {os.fspath(name) for name in opened if not isinstance(name, int)} <= {str(path)}
    assert "tripwire" not in sys.modules


def test_a_configuration_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        recipe_from_config(tmp_path / "missing.yaml")
