"""Model folders in the layout of diffusers, without diffusers: round trips, and what is refused."""

import json
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldmkit
from ldmkit.process import uniform
from ldmkit.weights.diffusers import Spacing, export_diffusers, import_diffusers, read_diffusers_recipe

TINY = {"base_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1}
UNET = {"channels": 3, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]}
FIRST_STAGES = {
    "vq": ("vq", {"channels": 3, "codebook_size": 9, "attn_resolutions": [128], "scale": 1.0}),
    "vq, narrow codes": ("vq", {"channels": 3, "codebook_size": 9, "z_channels": 5, "scale": 1.0}),
    "kl": ("kl", {"channels": 3, "scale": 1.0}),
    "kl without attention": ("kl", {"channels": 3, "attention": False, "scale": 1.0}),
}
BACKBONES = {
    "heads by width": {"head_channels": 16},
    "one head": {"num_heads": 1},
    "qkv first": {"num_heads": 1, "qkv_first": True},
    "scale and shift": {"head_channels": 32, "scale_shift_norm": True},
    "resblock up and down": {"head_channels": 32, "resblock_updown": True, "attention_resolutions": [1, 2]},
    "concat": {"head_channels": 32, "concat_channels": 3},
}


def composed(backbone=(), first_stage="vq", process=(), **parts):
    kind, options = FIRST_STAGES[first_stage]
    model = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", kind, **TINY, **options),
        backbone=ldmkit.build("backbone", "unet", **{**UNET, **dict(backbone or BACKBONES["heads by width"])}),
        process=ldmkit.build("process", "vp", **dict(process)),
        **parts,
    )
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return model.eval()


def low_res():
    return ldmkit.Joint({"low_res": ldmkit.build("conditioner", "low-res", channels=3)}, guided=[])


def conditioned(backbone):
    return {"conditioner": low_res()} if "concat_channels" in backbone else {}


@pytest.fixture
def folder(tmp_path):
    export_diffusers(composed(), tmp_path / "folder")
    return tmp_path / "folder"


def rewrite(path, **words):
    path.write_text(json.dumps({**json.loads(path.read_text()), **words}))


def assert_same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES.keys())
def test_what_is_exported_is_imported_bitwise_with_the_same_options(backbone, tmp_path):
    model = composed(backbone, **conditioned(backbone))
    export_diffusers(model, tmp_path / "folder")
    again = import_diffusers(tmp_path / "folder")
    assert_same_weights(model, again)
    x, t = torch.randn(2, 3 + model.backbone.concat_channels, 8, 8), torch.tensor([3, 700])
    assert torch.equal(again.backbone(x, t), model.backbone(x, t))


@pytest.mark.parametrize("first_stage", FIRST_STAGES)
def test_first_stages_come_back_bitwise(first_stage, tmp_path):
    model = composed(first_stage=first_stage)
    export_diffusers(model, tmp_path / "folder")
    again = import_diffusers(tmp_path / "folder")
    assert_same_weights(model, again)
    z = torch.randn(1, 3, 8, 8)
    assert torch.equal(again.decode(z), model.decode(z))


@pytest.mark.parametrize("process", [{}, {"start": 0.001, "end": 0.01, "steps": 500}, {"betas": "cosine"}])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_process_and_prediction_come_back(process, prediction, tmp_path):
    model = composed(process=process, prediction=prediction)
    export_diffusers(model, tmp_path / "folder")
    recipe = read_diffusers_recipe(tmp_path / "folder")
    assert recipe.prediction == prediction
    again = ldmkit.registry.build_part("process", recipe.process)
    assert torch.equal(again.alpha_bar, model.process.alpha_bar)


def test_the_levels_of_an_exported_model_are_those_it_has_here(folder):
    model, spacing = import_diffusers(folder), Spacing(**read_diffusers_recipe(folder).notes["levels"])
    for n in (1, 4, 50, 500):
        assert spacing.levels(model.process, n).stops == uniform(model.process, n).stops


def test_notes_say_what_the_folder_says_beside_the_model(folder):
    rewrite(folder / "scheduler/scheduler_config.json", clip_sample=True, timestep_spacing="trailing")
    notes = read_diffusers_recipe(folder).notes
    assert notes["levels"] == {"spacing": "trailing", "offset": 1, "clean": False}
    assert notes["clip"] == 1.0
    assert notes["sampling"] == {"height": 256, "width": 256}
    assert notes["source"] == {"pipeline": "LDMPipeline", "sampler": "DDIMScheduler"}


def test_an_imported_model_is_saved_and_loaded_as_ours(folder, tmp_path):
    model = import_diffusers(folder)
    model.save(tmp_path / "model.safetensors")
    assert_same_weights(model, ldmkit.load(tmp_path / "model.safetensors"))


def test_a_super_resolution_folder_ignores_the_scale_that_its_pipeline_ignores(tmp_path):
    backbone = BACKBONES["concat"]
    export_diffusers(composed(backbone, **conditioned(backbone)), tmp_path / "folder")
    rewrite(tmp_path / "folder/vqvae/config.json", scaling_factor=0.18215)
    model = import_diffusers(tmp_path / "folder")
    assert float(model.first_stage.scale) == 1
    assert model.conditioner.guided == ()


def test_precision_is_that_of_the_files_and_the_first_stage_is_float32(folder):
    for name in ("unet", "vqvae"):
        path = folder / name / "diffusion_pytorch_model.safetensors"
        save_file({key: value.half() for key, value in load_file(path).items()}, path)
    model = import_diffusers(folder)
    assert {value.dtype for value in model.backbone.parameters()} == {torch.float16}
    assert {value.dtype for value in model.first_stage.parameters()} == {torch.float32}
    asked = import_diffusers(folder, dtype=torch.bfloat16)
    assert {value.dtype for value in asked.backbone.parameters()} == {torch.bfloat16}


def test_a_variant_is_read_under_its_own_name(folder):
    for name in ("unet", "vqvae"):
        weights = folder / name / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert_same_weights(import_diffusers(folder, variant="fp16"), composed_like(folder))
    with pytest.raises(ldmkit.CheckpointError, match=r"no weights for 'vqvae': expected .*found \['diffusion_pytorch_"):
        import_diffusers(folder)


def composed_like(folder):
    """The same model by another way: its plain file names."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    for path in copy.rglob("*.fp16.safetensors"):
        path.rename(path.with_name("diffusion_pytorch_model.safetensors"))
    return import_diffusers(copy)


def test_weights_that_torch_saved_are_read_too(folder, tmp_path):
    whole = import_diffusers(folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert_same_weights(import_diffusers(folder), whole)


def in_shards(folder, names=("one.safetensors", "two.safetensors")):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    where = {key: names[n % len(names)] for n, key in enumerate(tensors)}
    for name in set(names):
        if "/" not in name:
            save_file({key: tensors[key] for key in tensors if where[key] == name}, folder / "unet" / name)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))


def test_shards_are_one_model(folder):
    whole = import_diffusers(folder)
    in_shards(folder)
    assert_same_weights(import_diffusers(folder), whole)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b", 3])
def test_shards_have_plain_names(folder, name):
    in_shards(folder)
    rewrite(folder / "unet/diffusion_pytorch_model.safetensors.index.json", weight_map={"conv_in.weight": name})
    with pytest.raises(ldmkit.CheckpointError, match=r"plain names|no 'weight_map'"):
        import_diffusers(folder)


def test_a_link_may_not_leave_the_folder(folder, tmp_path):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "outside")
    weights.symlink_to(tmp_path / "outside")
    with pytest.raises(ldmkit.CheckpointError, match="leads out of the folder"):
        import_diffusers(folder)


def test_a_snapshot_in_the_hubs_cache_links_to_the_blobs_beside_it(folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    snapshot = folder.rename(tmp_path / "snapshots/abc")
    weights = snapshot / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "blobs/123")
    weights.symlink_to("../../../blobs/123")
    assert isinstance(import_diffusers(snapshot), ldmkit.LatentDiffusion)


def test_older_names_of_attention_are_understood(folder):
    whole = import_diffusers(folder)
    for name in ("unet", "vqvae"):
        path = folder / name / "diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = {}
        for key, value in load_file(path).items():
            here = next((new for new in old if f".{new}." in key), None)
            tensors[key if here is None else key.replace(here, old[here])] = value
        assert any(key.endswith("proj_attn.weight") for key in tensors)
        save_file(tensors, path)
    assert_same_weights(import_diffusers(folder), whole)


WRONG_WORDS = [
    ("model_index.json", "_class_name", "FluxPipeline", "of class 'FluxPipeline'; ldmkit knows"),
    ("unet/config.json", "_class_name", ["UNet2DModel"], r"of class \['UNet2DModel'\]"),
    ("unet/config.json", "norm_eps", 1e-6, r"unet/config.json says norm_eps=1e-06; ldmkit has a place for 1e-05"),
    ("unet/config.json", "flip_sin_to_cos", False, "says flip_sin_to_cos=False"),
    ("unet/config.json", "new_trick", True, "says new_trick=True, a word that ldmkit does not know"),
    ("unet/config.json", "block_out_channels", [32, 10**12], "says block_out_channels=1000000000000, expected a"),
    ("unet/config.json", "block_out_channels", [32, 48], "expected multiples of the first"),
    ("unet/config.json", "block_out_channels", "wide", "expected a list of 1 to 16"),
    ("unet/config.json", "layers_per_block", True, "says layers_per_block=True"),
    ("unet/config.json", "downsample_type", "fir", r"ldmkit has a place for 'conv'"),
    ("unet/config.json", "up_block_types", ["UpBlock2D", "AttnUpBlock2D"], "attention at other levels"),
    ("unet/config.json", "num_class_embeds", 10, "10 classes"),
    ("unet/config.json", "in_channels", 4, "1 further channels"),
    ("unet/config.json", "attention_head_dim", 33, "do not build: .* does not divide"),
    ("vqvae/config.json", "norm_type", "spatial", "says norm_type='spatial'"),
    ("vqvae/config.json", "scaling_factor", float("nan"), "expected a finite number"),
    ("vqvae/config.json", "down_block_types", ["DownEncoderBlock2D"], "expected 2 of"),
    ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction", "says prediction_type='flow_prediction'"),
    ("scheduler/scheduler_config.json", "trained_betas", [0.1], "says trained_betas"),
    ("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler", "of class 'FlowMatch"),
]


@pytest.mark.parametrize(("path", "word", "value", "message"), WRONG_WORDS)
def test_a_word_without_a_place_is_refused_by_name(folder, path, word, value, message):
    rewrite(folder / path, **{word: value})
    with pytest.raises(ldmkit.CheckpointError, match=message):
        import_diffusers(folder)


def without_one(tensors):
    del tensors["conv_in.weight"]


def with_another(tensors):
    tensors["controlnet.weight"] = torch.zeros(1)


def with_another_shape(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :2].contiguous()


def turned(tensors):
    tensors["time_embedding.linear_1.weight"] = tensors["time_embedding.linear_1.weight"].T.contiguous()


def with_nan(tensors):
    tensors["conv_in.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_one, "missing conv_in.weight"),
        (with_another, "unexpected controlnet.weight"),
        (with_another_shape, r"conv_in.weight: \(32, 2, 3, 3\) in the file, \(32, 3, 3, 3\) in the model"),
        (turned, r"linear_1.weight: \(32, 128\) in the file"),
        (with_nan, r"not finite: \['conv_in.bias'\]"),
    ],
)
def test_every_tensor_is_accounted_for(folder, change, message):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ldmkit.CheckpointError, match=message):
        import_diffusers(folder)


def test_damaged_files_are_one_kind_of_error(folder):
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"[1, 2]", b"[" * 100_000, b"\xff" * 100):
            path.write_bytes(damaged)
            with pytest.raises(ldmkit.CheckpointError):
                import_diffusers(folder)
        path.unlink()
        with pytest.raises(ldmkit.CheckpointError):
            import_diffusers(folder)
        path.write_bytes(whole)


def test_a_configuration_larger_than_its_file_is_refused_before_it_costs_memory(folder):
    rewrite(folder / "unet/config.json", block_out_channels=[32 * 1024, 64 * 1024], layers_per_block=2)
    with pytest.raises(ldmkit.CheckpointError, match=r"do not fit its config\.json"):
        import_diffusers(folder)


def test_a_place_that_is_neither_folder_nor_id_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no hub id of the form owner/name"):
        import_diffusers(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="leave revision='main' out"):
        import_diffusers(tmp_path, revision="main")


def test_a_hub_id_downloads_what_is_read_and_no_more(folder, monkeypatch):
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    model = import_diffusers("someone/something", revision="abc123")
    assert isinstance(model, ldmkit.LatentDiffusion)
    [(name, options)] = calls
    assert name == "someone/something"
    assert options["revision"] == "abc123"
    patterns = options["allow_patterns"]
    assert {"model_index.json", "unet/*.json", "unet/diffusion_pytorch_model.safetensors"} <= set(patterns)
    assert not any(pattern.endswith((".bin", ".py")) or pattern.startswith("*") for pattern in patterns)


def test_without_the_hubs_client_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        import_diffusers("someone/something")


def other_process():
    model = composed()
    parts = {"first_stage": model.first_stage, "backbone": model.backbone}
    return ldmkit.LatentDiffusion(**parts, process=ldmkit.build("process", "rectified-flow"), prediction="flow")


def pixels():
    backbone = ldmkit.build("backbone", "unet", **UNET, num_heads=1)
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=3),
        backbone=backbone,
        process=ldmkit.build("process", "vp"),
    )


def with_classes():
    label = ldmkit.build("conditioner", "class-index", classes=4)
    return composed({"num_heads": 1, "num_classes": 5}, conditioner=label)


def with_guided_low_res():
    conditioner = ldmkit.build("conditioner", "low-res", channels=3)
    return composed({"num_heads": 1, "concat_channels": 3}, conditioner=conditioner)


def with_a_wide_first_stage():
    kind, options = "kl", {"channels": 3, "z_channels": 4}
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", kind, **TINY, **options),
        backbone=ldmkit.build("backbone", "unet", **UNET, num_heads=1),
        process=ldmkit.build("process", "vp"),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_process, "process RectifiedFlow.* has no form in diffusers"),
        (pixels, "first stage 'pixel' with backbone 'unet' has no form"),
        (with_classes, r"conditioners \['class-index'\] has no form"),
        (with_guided_low_res, "'low-res' with guided=True has no form"),
        (with_a_wide_first_stage, "4 channels before its latent of 3"),
        (lambda: composed({"num_heads": 2, "attention_resolutions": [1, 2]}), "2 heads at levels of"),
        (lambda: composed({"num_heads": 1, "conv_resample": False}), "conv_resample=False has no form"),
        (lambda: composed({"num_heads": 1, "resblock_updown": True}), "only where every level attends"),
    ],
)
def test_a_model_without_a_form_there_is_refused_and_nothing_is_written(make, message, tmp_path):
    with pytest.raises(ldmkit.CompositionError, match=message):
        export_diffusers(make(), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match="remove it first"):
        export_diffusers(composed(), folder)
    assert sorted(folder.rglob("*")) == before


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("ldmkit.weights.diffusers.exporting.save_file", full)
    with pytest.raises(OSError, match="no space"):
        export_diffusers(composed(), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_spacing_refuses_what_its_table_has_not():
    process = ldmkit.build("process", "vp")
    for spacing, n in ((Spacing(), 0), (Spacing(), 1001), (Spacing(offset=1), 1000)):
        with pytest.raises(ValueError, match=r"spaces 1 to 1000 steps|would begin at time 1000"):
            spacing.levels(process, n)
    with pytest.raises(ValueError, match="leading, trailing or linspace"):
        Spacing("even")
