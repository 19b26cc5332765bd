"""What is encoded once is what would be encoded in every step, and a cache of anything else is refused."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.caching import SIZE, Words, cached, grain, model, records
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import ldmkit
from ldmkit.conditioners.layout_tokens import Box
from ldmkit.data.augment import CenterCrop, Flip
from ldmkit.data.folders import image_folder
from ldmkit.errors import BatchError, CheckpointError, CompositionError, NonFiniteError
from ldmkit.training.cache import cache_latents
from ldmkit.training.data import Feed
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.encodings import cache_encodings
from ldmkit.training.interruption import Stopped
from ldmkit.training.loop import train
from ldmkit.training.optim import constant
from ldmkit.training.run import Run

TESTS = Path(__file__).parent
QUIET = {"progress": False, "batch": 2}


def latents_of(folder, made=None, data=None, **options):
    made = made or model()
    return cache_latents(records() if data is None else data, made.stage, folder, **{"shard": 4, **QUIET, **options})


def encodings_of(folder, made, data=None, **options):
    data = records() if data is None else data
    return cache_encodings(data, made, "text-to-image", folder, ["text"], **{"shard": 2, **QUIET, **options})


def loss(trainee, given, seeds):
    """The loss per sample, and the gradient of every trained weight."""
    module = trainee.phases["diffusion"].train()
    module.zero_grad()
    values = module(trainee.prepare(given, seeds), seeds, 0)
    values.mean().backward()
    return values.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def same(a, b):
    torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)
    assert a[1].keys() == b[1].keys()
    for name, value in a[1].items():
        torch.testing.assert_close(value, b[1][name], rtol=1e-3, atol=1e-5, msg=name)


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


class Own(nn.Module):
    """A first stage of somebody else: a shift, a scale, and a spread that its weights do not say."""

    factor, channels, image_channels = 2, 1, 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def encode(self, image, noise=None):
        mean = nn.functional.avg_pool2d(image, 2)
        return (mean - 0.25 + (0 if noise is None else mean.abs() * noise)) * self.weight

    def decode(self, z):
        return nn.functional.interpolate(z / self.weight + 0.25, scale_factor=2)


# Latents


@pytest.mark.parametrize("stage", ["kl", "vq", "pixel"])
def test_cached_latents_train_what_images_train(stage, tmp_path):
    made, seeds = model(stage), (3, 4, 5, 6)
    latents = latents_of(tmp_path, made)
    live, kept = (loss(Diffusion(made, "text-to-image"), list(given)[2:6], seeds) for given in (records(), latents))
    same(live, kept)
    assert ("latent_std" in latents[0]) == (stage == "kl")


def test_a_first_stage_of_somebody_else_draws_as_it_would(tmp_path):
    stage, noise = Own(), torch.randn(1, 1, SIZE // 2, SIZE // 2)
    kept = cache_latents(records(), stage, tmp_path, **QUIET)[7]
    expected = stage.encode(records()[7]["target"][None] * 2 - 1, noise)[0]
    torch.testing.assert_close(kept["latent"] + kept["latent_std"] * noise[0], expected)


def test_everything_else_of_a_record_is_as_it_was(tmp_path):
    told = {
        "prompt": "a cat, ü",
        "label": np.int64(3),
        "boxes": [Box(1, 0.0, 0.25, 0.5, 1.0, ("is_depicted",)), (2, 0.0, 0.0, 1.0, 1.0)],
        "segmentation": torch.tensor([[0, 181], [7, -1]]),
        "maps": torch.tensor([[0, 181], [7, 255]]),
        "image": torch.rand(1, SIZE, SIZE),
        "embedding": np.linspace(0, 1, 3),
        "path": Path("a/b.png"),
        "more": {"weights": (1.5, None, True), "empty": torch.zeros(0, 2)},
    }
    data = [{**record, **told} for record in records(3)]
    record = latents_of(tmp_path, data=data)[2]
    assert record.keys() == {*told, "place", "latent", "latent_std"}
    for key in ("prompt", "label", "boxes", "path"):
        assert record[key] == told[key]
    for key in ("segmentation", "maps", "image"):
        assert torch.equal(record[key], told[key])
        assert record[key].dtype == told[key].dtype
    assert np.array_equal(record["embedding"], told["embedding"])
    assert record["more"]["weights"] == told["more"]["weights"]
    assert record["more"]["empty"].shape == (0, 2)


def test_what_no_cache_keeps_is_refused_by_name(tmp_path):
    data = [{**record, "image": Image.new("L", (SIZE, SIZE))} for record in records(2)]
    with pytest.raises(TypeError, match=r"record 0 is Image; a cache keeps text, .* make the records with ldmkit"):
        latents_of(tmp_path, data=data)


def test_pictures_of_a_folder_are_read_once(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.new("L", (SIZE, SIZE + i % 2), 40 * i).save(tmp_path / "pictures" / f"{i}.png")
    data = image_folder(tmp_path / "pictures", channels=1)
    options = {"data": data, "augment": CenterCrop(SIZE)}
    first = [record["latent"] for record in latents_of(tmp_path / "cache", **options)]
    again = latents_of(tmp_path / "cache", **options)
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    assert all(torch.equal(record["latent"], latent) for record, latent in zip(again, first, strict=True))


def test_sizes_may_differ(tmp_path):
    data = [*records(3), *records(2, size=2 * SIZE), *records(1)]
    shapes = [tuple(record["latent"].shape) for record in latents_of(tmp_path, data=data)]
    assert shapes == [(2, 4, 4)] * 3 + [(2, 8, 8)] * 2 + [(2, 4, 4)]


def test_passes_draw_anew_and_do_so_again(tmp_path):
    one, two = (latents_of(tmp_path / name, augment=grain, passes=2, seed=1) for name in ("one", "two"))
    assert len(one) == 20
    assert one[3]["place"] == one[13]["place"] == 3
    assert not torch.equal(one[3]["latent"], one[13]["latent"])
    assert all(torch.equal(a["latent"], b["latent"]) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_as_such(dtype, tmp_path):
    half, whole = latents_of(tmp_path / "half", dtype=dtype)[5], latents_of(tmp_path / "whole")[5]
    assert half["latent"].dtype == half["latent_std"].dtype == dtype
    torch.testing.assert_close(half["latent"].float(), whole["latent"], rtol=1e-2, atol=1e-3)
    Diffusion(model(), "text-to-image").prepare([half, half], (1, 2))


def test_a_number_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(NonFiniteError, match=r"the latent of record 0 is not finite in torch\.float16"):
        latents_of(tmp_path, model(scale=1e9), dtype=torch.float16)


def test_workers_read_the_same(tmp_path):
    latents = latents_of(tmp_path / "a", workers=2)
    assert bytes_of(tmp_path / "a") == bytes_of((latents_of(tmp_path / "b"), tmp_path / "b")[1])
    copied = pickle.loads(pickle.dumps(latents))
    alone, shared = (list(Feed(latents, None, 0, 5, workers=n).steps(0, 2)) for n in (0, 2))
    for a, b in zip(alone, shared, strict=True):
        for one, other in zip(a[0].records, b[0].records, strict=True):
            assert torch.equal(one["latent"], other["latent"])
    assert torch.equal(copied[9]["latent"], latents[9]["latent"])
    with pytest.raises(IndexError, match="records 0 to 9, got 10"):
        latents[10]


def test_a_cache_leaves_the_generator_and_the_modes_as_they_were(tmp_path):
    made = model()
    made.stage.decoder.train()
    before = torch.random.get_rng_state()
    latents_of(tmp_path, made)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (made.stage.decoder.training, made.stage.encoder.training) == (True, made.stage.encoder.training)


# What is refused


def weights(made):
    with torch.no_grad():
        made.stage.encoder.conv_in.bias += 1e-3
    return {}


def scale(made):
    made.stage.scale.mul_(1.001)
    return {}


STALE = {
    "weights": (weights, "'weights of the first-stage' was"),
    "scale": (scale, "'weights of the first-stage' was"),
    "count": (lambda made: {"data": records(11)}, "'number of records' was 10, and is 11"),
    "size": (lambda made: {"data": records(size=12)}, "record 0 was another one"),
    "other images": (lambda made: {"data": records(seed=5)}, "record 0 was another one"),
    "augment": (lambda made: {"augment": Flip()}, r"'augment' was \"None\", and is \"Flip\(chance=0.5\)\""),
    "seed": (lambda made: {"seed": 1}, "'seed' was 0, and is 1"),
    "passes": (lambda made: {"passes": 2}, "'passes' was 1, and is 2"),
    "dtype": (lambda made: {"dtype": torch.float16}, r"'dtype' was \"torch.float32\", and is \"torch.float16\""),
}


@pytest.mark.parametrize("change", STALE)
def test_a_stale_cache_is_refused_and_says_why(change, tmp_path):
    made = model()
    latents_of(tmp_path, made)
    before = bytes_of(tmp_path)
    changed, words = STALE[change]
    with pytest.raises(CheckpointError, match=rf"is stale: {words}.*Delete the folder, or give another one"):
        latents_of(tmp_path, made, **changed(made))
    assert bytes_of(tmp_path) == before


def test_another_option_of_the_first_stage_is_refused(tmp_path):
    latents_of(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"is stale: 'first-stage\.options\.num_res_blocks' was 1, and is not said\."
    ):
        latents_of(tmp_path, model(num_res_blocks=2))


def test_a_changed_caption_or_file_is_seen_without_reading_pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        Image.new("L", (SIZE, SIZE), i).save(tmp_path / "pictures" / f"{i:02}.png")
    data = image_folder(tmp_path / "pictures", channels=1)
    latents_of(tmp_path / "cache", data=data)
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "pictures" / "01.png")
    with pytest.raises(CheckpointError, match="'fingerprint of the records' was"):
        latents_of(tmp_path / "cache", data=data)


def test_verify_sees_what_a_few_records_do_not_tell(tmp_path):
    data = records(40)
    latents_of(tmp_path, data=data)
    data[1] = {**data[1], "prompt": "a change"}
    latents_of(tmp_path, data=data)
    with pytest.raises(CheckpointError, match="record 1 was another one"):
        latents_of(tmp_path, data=data, verify=True)


def test_verify_sees_a_flipped_byte(tmp_path):
    latents_of(tmp_path)
    latents_of(tmp_path, verify=True)
    flip_last_byte(tmp_path / "00001.safetensors")
    with pytest.raises(CheckpointError, match=r"00001\.safetensors is damaged: '.*' is not what was written. Delete"):
        latents_of(tmp_path, verify=True)


def test_damage_is_named(tmp_path):
    latents = latents_of(tmp_path)
    shard = tmp_path / "00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=r"00001\.safetensors cannot be read: .* its tensors end at byte"):
        latents_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"00001\.safetensors is damaged or gone, at its record 3: it ends too"):
        latents[7]
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"the shard .*00001\.safetensors is gone, 1 in all. Delete"):
        latents_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"is damaged or gone, at its record 0: .*No such file"):
        latents[4]
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cache\.json cannot be read"):
        latents_of(tmp_path)


def test_a_shard_of_another_cache_is_refused(tmp_path):
    latents_of(tmp_path / "a")
    latents_of(tmp_path / "b", model(scale=2.0))
    (tmp_path / "a" / "00000.safetensors").write_bytes((tmp_path / "b" / "00000.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="it belongs to another cache than"):
        latents_of(tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data": []}, ValueError, "list is empty: there is nothing to encode"),
        ({"data": iter(records())}, TypeError, "a cache needs data with a length and an index, got list_iterator"),
        ({"data": [{"image": torch.rand(1, SIZE, SIZE)}]}, BatchError, "record 0 has no 'target', .*'image'"),
        ({"seed": -1}, ValueError, r"a seed must lie in \[0, 2\*\*64\), got -1"),
        ({"passes": 0}, ValueError, "passes must be at least 1, got 0"),
        ({"dtype": torch.float64}, ValueError, "a cache keeps numbers as torch.float32"),
    ],
)
def test_what_makes_no_cache_is_refused(options, error, words, tmp_path):
    with pytest.raises(error, match=words):
        latents_of(tmp_path, **options)


# Interruption and several processes


def test_an_interrupted_cache_goes_on_to_the_same_bytes(tmp_path):
    read = []

    class Interrupted(list):
        def __getitem__(self, place):
            read.append(place)
            if len(read) == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(place)

    with pytest.raises(Stopped, match="stopped by SIGINT; the shards that are finished are kept"):
        latents_of(tmp_path / "cut", data=Interrupted(records()), shard=2)
    kept = bytes_of(tmp_path / "cut")
    assert len(kept) == 4  # the manifest and three shards
    read[:] = [None] * 7
    latents_of(tmp_path / "cut", data=Interrupted(records()), shard=2)
    assert sorted(read[7:]) == list(range(10))  # some to compare them, the others to encode them
    latents_of(tmp_path / "whole", shard=2)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert {name: data for name, data in bytes_of(tmp_path / "cut").items() if name in kept and name[0] == "0"} == {
        name: data for name, data in kept.items() if name[0] == "0"
    }


def test_a_finished_cache_encodes_nothing_and_writes_nothing(tmp_path):
    made = model()
    cached(tmp_path, made)
    made.conditioner.sources["text"].calls.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    made.stage.encoder.forward = None
    cached(tmp_path, made)
    assert made.conditioner.sources["text"].calls == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_two_processes_cache_what_one_caches(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(TESTS / "distributed" / "caching.py"), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cached(tmp_path / "one", model())
    for kind in ("latents", "text"):
        assert bytes_of(tmp_path / "two" / kind) == bytes_of(tmp_path / "one" / kind)


# Encodings


def test_cached_encodings_train_what_the_conditioner_trains(tmp_path):
    made, seeds = model(drop=0.5), tuple(range(8))
    live = loss(Diffusion(made, "text-to-image"), records(8), seeds)
    encodings = encodings_of(tmp_path, made)
    made.conditioner.sources["text"].calls.clear()
    kept = loss(Diffusion(made, "text-to-image", encodings=encodings), records(8), seeds)
    assert made.conditioner.sources["text"].calls == []
    same(live, kept)
    undropped = loss(Diffusion(model(drop=0.0), "text-to-image"), records(8), seeds)
    assert not torch.allclose(live[0], undropped[0], rtol=1e-3)


def test_conditions_and_nulls_are_those_of_the_conditioner(tmp_path):
    made, batch = model(), {"prompt": ["a dog", "a red cat", "a dog"]}
    source, stand_in = made.conditioner.sources["text"], encodings_of(tmp_path, made)["text"]
    for live, kept in ((source(batch), stand_in(batch)), (source.null(batch), stand_in.null(batch))):
        assert live.filled().keys() == kept.filled().keys()
        for slot, value in live.filled().items():
            torch.testing.assert_close(kept.filled()[slot], value)


@pytest.mark.parametrize(
    ("name", "options", "keys"),
    [
        ("class-label", {"classes": 3, "width": 8, "slot": "vector"}, {"label": torch.tensor([2, 0, 2])}),
        ("class-index", {"classes": 3}, {"label": torch.tensor([2, 0, 2])}),
        ("class-label", {"classes": 3, "width": 8, "null_class": False}, {"label": torch.tensor([2, 0, 2])}),
        ("precomputed", {"key": "depth", "slot": "concat", "size": 1}, {"depth": torch.rand(3, 1, 4, 4)}),
    ],
)
def test_every_slot_can_be_kept(name, options, keys, tmp_path):
    class Given:
        takes = fills = tuple(keys)

        def prepare(self, inputs):
            return {key: torch.stack(list(map(torch.as_tensor, value))) for key, value in inputs.items()}

    source = ldmkit.build("conditioner", name, **options)
    source.requires_grad_(False)
    room = {"context": "context_dim", "vector": "vector_dim", "label": "num_classes", "concat": "concat_channels"}
    tiny = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [], "num_heads": 1}
    backbone = ldmkit.build(
        "backbone", "unet", channels=1, **tiny, **{room[slot]: size for slot, size in source.provides.items()}
    )
    made = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=1),
        backbone=backbone,
        process=ldmkit.build("process", "vp"),
        conditioner={"told": source},
    )
    data = [{key: value[i] for key, value in keys.items()} for i in range(3)]
    stand_in = cache_encodings(data, made, Given(), tmp_path, ["told"], **QUIET)["told"]
    for slot, value in source(keys).filled().items():
        assert torch.equal(stand_in(keys).filled()[slot], value)
    if options.get("null_class", True):
        assert torch.equal(*(next(iter(one.null(keys).filled().values())) for one in (source, stand_in)))
    else:
        with pytest.raises(ValueError, match="source 'told' has no null"):
            stand_in.null(keys)


def test_equal_prompts_are_encoded_once(tmp_path):
    made = model()
    encodings_of(tmp_path, made)
    said = [prompt for call in made.conditioner.sources["text"].calls for prompt in call]
    assert sorted(prompt for prompt in said if prompt) == ["a dog", "a red cat", "one blue bird"]
    tensors = [load_file(path) for path in sorted((tmp_path / "text").glob("*.safetensors"))]
    assert sum(len(one["content"]) for one in tensors) == 4
    assert [len(one["F32 3x8"]) for one in tensors] == [3, 2]  # one null in each, and "" is the null itself


def test_encodings_are_added_for_further_data(tmp_path):
    made = model()
    encodings_of(tmp_path, made)
    made.conditioner.sources["text"].calls.clear()
    more = [*records(), {**records(1)[0], "prompt": "a horse"}]
    stand_in = encodings_of(tmp_path, made, more)["text"]
    assert [prompt for call in made.conditioner.sources["text"].calls for prompt in call if prompt] == ["a horse"]
    assert stand_in({"prompt": ["a horse", "a dog"]}).batch_size == 2


def test_what_was_never_encoded_is_refused(tmp_path):
    stand_in = encodings_of(tmp_path, model())["text"]
    with pytest.raises(BatchError, match=r"source 'text' was never told \{'prompt': 'a fish'\}: .* has 4 other"):
        stand_in({"prompt": ["a dog", "a fish"]})


def test_encodings_of_another_conditioner_are_refused(tmp_path):
    made = model()
    encodings_of(tmp_path, made)
    with torch.no_grad():
        made.conditioner.sources["text"].mix.bias += 1e-3
    with pytest.raises(CheckpointError, match="is stale: 'weights of the conditioner' was"):
        encodings_of(tmp_path, made)


def test_a_damaged_encoding_is_seen(tmp_path):
    made = model()
    encodings_of(tmp_path, made)
    flip_last_byte(tmp_path / "text" / "00000.safetensors")
    with pytest.raises(CheckpointError, match="is not what was written"):
        encodings_of(tmp_path, made, verify=True)


def test_a_source_that_is_trained_is_refused(tmp_path):
    made = model()
    made.conditioner.sources["text"].mix.requires_grad_(True)
    with pytest.raises(
        CompositionError, match=r"source 'text' \(Words\) is trained, 2 parameters such as 'mix.weight'"
    ):
        encodings_of(tmp_path, made)


def test_sources_without_anything_to_keep_are_refused(tmp_path):
    with pytest.raises(CompositionError, match=r"no source 'words' to encode; its sources are \['text'\]"):
        cache_encodings(records(), model(), "text-to-image", tmp_path, ["words"], **QUIET)
    with pytest.raises(CompositionError, match=r"encodings of 'words', and the model's sources are \['text'\]"):
        Diffusion(model(), "text-to-image", encodings={"words": Words()})


def test_an_image_that_every_step_encodes_is_nothing_to_keep(tmp_path):
    source = ldmkit.build("conditioner", "masked-image", channels=2)
    tiny = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [], "num_heads": 1}
    made = ldmkit.LatentDiffusion(
        first_stage=model().stage,
        backbone=ldmkit.build("backbone", "unet", channels=2, concat_channels=source.provides["concat"], **tiny),
        process=ldmkit.build("process", "vp"),
        conditioner={"hole": source},
    )
    with pytest.raises(
        CompositionError, match=r"source 'hole' reads \['masked_image_latent'\], which every step makes"
    ):
        cache_encodings(records(), made, "inpainting", tmp_path, ["hole"], **QUIET)


def test_the_exported_model_has_its_own_conditioner(tmp_path):
    ldmkit.register("conditioner", "words-of-a-test", Words)
    made = model()
    latents, encodings = cached(tmp_path, made)
    run = Run(out=tmp_path / "run", steps=2, batch=4, rate=constant(1e-2), progress=False)
    shown = {"prompt": "a fish nobody encoded", "height": SIZE, "width": SIZE, "num_inference_steps": 1}
    path = train(Diffusion(made, "text-to-image", samples=shown, encodings=encodings), latents, run)
    again = ldmkit.load(path)
    assert not torch.equal(again.backbone.out[2].weight, model().backbone.out[2].weight)
    for name, value in model().conditioner.sources["text"].state_dict().items():
        assert torch.equal(again.conditioner.sources["text"].state_dict()[name], value)
    assert again.conditioner.drop == {"text": 0.5}
    made = ldmkit.pipeline("text-to-image", again)(**shown, progress=False, output_type="pt").images
    assert made.shape == (1, 1, SIZE, SIZE)


def test_a_conditioner_may_be_elsewhere_while_the_model_trains(tmp_path):
    made = model()
    encodings = encodings_of(tmp_path, made)
    made.conditioner.sources["text"].to("meta")
    values, gradients = loss(Diffusion(made, "text-to-image", encodings=encodings), records(4), (1, 2, 3, 4))
    assert values.isfinite().all()
    assert not any("mix" in name for name in gradients)


def test_a_scale_is_not_measured_on_latents_that_have_one(tmp_path):
    trainee = Diffusion(model(), "text-to-image", measure=4)
    with pytest.raises(ValueError, match="measure=4 would change the scale of a first stage that has encoded"):
        trainee.begin(Feed(latents_of(tmp_path), None, 0, 2).first)
