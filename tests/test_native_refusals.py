"""What a file cannot hold refuses to be saved, and the difference is named; wrappers are looked through."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ldmkit
from ldmkit.conditioning import Conditioning
from ldmkit.errors import CompositionError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.weights.native import save, verify

UNET = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1]}
RECIPE = Recipe(
    Part("pixel"),
    Part("unet", {**UNET, "num_heads": 2, "context_dim": 8}),
    Part("vp"),
    sources={"class": Source(Part("class-label", {"classes": 3, "width": 8}))},
)


@pytest.fixture
def model():
    return compose(RECIPE).eval()


def of(model, kind):
    """The first module of a class."""
    return next(module for module in model.backbone.modules() if isinstance(module, kind))


class Adapter(nn.Module):
    """A low-rank adapter around a layer, under names of its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 1, bias=False)
        self.up = nn.Linear(1, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class Louder(nn.SiLU):
    """Another function under the same names."""


def adapted(model):
    model.backbone.time_embed[0] = Adapter(model.backbone.time_embed[0])


def activated(model):
    model.backbone.time_embed[1] = Louder()


def renumbered(model):
    next(m for m in model.backbone.modules() if "eps" in vars(m)).eps = 0.1


def beheaded(model):
    attention = next(m for m in model.backbone.modules() if "heads" in vars(m))
    attention.heads = 1


def hooked(model):
    of(model, nn.Linear).register_forward_hook(lambda module, inputs, output: 2 * output)


def replaced(model):
    layer = of(model, nn.Linear)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)


class OptimizedModule(nn.Module):
    """Not torch's: it computes something else than what it holds."""

    def __init__(self, layer):
        super().__init__()
        self._orig_mod = layer


def imitated(model):
    model.backbone.time_embed[0] = OptimizedModule(model.backbone.time_embed[0])


def extended(model):
    model.backbone.extra = nn.Linear(2, 2)


def added(model):
    model.backbone.more = nn.Identity()


def removed(model):
    model.backbone.time_embed[2] = nn.Identity()


def hidden(model):
    model.backbone.register_parameter("secret", nn.Parameter(torch.zeros(2)))
    model.backbone.register_state_dict_post_hook(lambda module, state, prefix, _: state.__delitem__(f"{prefix}secret"))


def deserted(model):
    model.backbone.to("meta")


def sparse(model):
    layer = of(model, nn.Linear)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())


CHANGES = {
    adapted: r"time_embed\.0\.down\.weight: \(1, 32\), rebuilt absent",
    activated: r"time_embed\.1 is Louder, rebuilt SiLU",
    renumbered: r"\.eps is 0\.1, rebuilt 1e-0[56]",
    beheaded: r"\.heads is 1, rebuilt 2",
    hooked: "has 1 hooks around its forward, rebuilt 0",
    replaced: "has its forward replaced",
    imitated: r"time_embed\.0\._orig_mod\.weight: \(128, 32\), rebuilt absent|time_embed\.0 is OptimizedModule",
    extended: r"extra\.weight: \(2, 2\), rebuilt absent",
    added: "denoiser.backbone.more is there and is not rebuilt",
    removed: r"time_embed\.2 is Identity, rebuilt Linear|time_embed\.2\.weight: absent",
    hidden: "secret is a parameter that its state_dict\\(\\) leaves out",
    deserted: "on 'meta' and has no values",
    sparse: "which a file cannot hold",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_by_hand_is_named_and_nothing_is_written(model, change, tmp_path):
    change(model)
    with pytest.raises(CompositionError, match=CHANGES[change]):
        model.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


class Computed(nn.Module):
    """A conditioner with a table that is computed and stored nowhere."""

    reads, provides = ("x",), {"context": 8}

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.register_buffer("table", torch.arange(4.0) * scale, persistent=False)
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        return Conditioning(context=batch["x"])

    def null(self, batch):
        return Conditioning(context=torch.zeros_like(batch["x"]))


@pytest.fixture
def computed(model):
    ldmkit.register("conditioner", "computed-table-for-test", Computed, replace=True)
    parts = {"first_stage": model.first_stage, "backbone": model.backbone, "process": model.process}
    table = ldmkit.build("conditioner", "computed-table-for-test", scale=2.0)
    return LatentDiffusion(**parts, conditioner={"x": table})


def test_a_computed_table_is_rebuilt_and_a_changed_one_is_refused(computed, tmp_path):
    computed.save(tmp_path / "model.safetensors")
    assert ldmkit.load(tmp_path / "model.safetensors").conditioner.sources["x"].table.tolist() == [0, 2, 4, 6]
    computed.conditioner.sources["x"].table[2] = 9
    with pytest.raises(CompositionError, match=r"sources\.x\.table is in no file"):
        computed.save(tmp_path / "model.safetensors")


def test_a_part_of_others_may_count_what_it_does(computed, tmp_path):
    computed.conditioner({"x": torch.zeros(1, 1, 8)})
    computed.save(tmp_path / "model.safetensors")


def test_extra_state_that_is_no_tensor_is_refused(computed, tmp_path):
    Computed.get_extra_state = lambda self: {"words": 3}
    try:
        with pytest.raises(CompositionError, match=r"x\._extra_state.*is dict, and a file holds tensors only"):
            computed.save(tmp_path / "model.safetensors")
    finally:
        del Computed.get_extra_state


def test_a_model_that_trains_saves_what_it_is(model, tmp_path):
    model.train()
    model.backbone.requires_grad_(False)
    save(model, tmp_path / "model.safetensors")
    assert not ldmkit.load(tmp_path / "model.safetensors").training


class Alone:
    """A process group of one, for wrappers that want one."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        torch.distributed.init_process_group("gloo", init_method=f"file://{self.path}", rank=0, world_size=1)

    def __exit__(self, *_):
        torch.distributed.destroy_process_group()


def test_compiled_parts_are_saved_as_what_was_compiled(model, tmp_path):
    save(model, tmp_path / "plain.safetensors")
    model.backbone.middle_block[0] = torch.compile(model.backbone.middle_block[0])
    parts = {"first_stage": torch.compile(model.first_stage), "backbone": model.backbone, "process": model.process}
    wrapped = LatentDiffusion(**parts, conditioner={"class": torch.compile(model.conditioner.sources["class"])})
    assert any("_orig_mod" in name for name in wrapped.state_dict())
    save(wrapped, tmp_path / "compiled.safetensors")
    assert verify(tmp_path / "compiled.safetensors") == verify(tmp_path / "plain.safetensors")
    save(torch.compile(model), tmp_path / "whole.safetensors")
    model.backbone.compile()
    save(model, tmp_path / "in-place.safetensors")


def test_a_model_in_ddp_is_saved_as_what_it_wraps(model, tmp_path):
    save(model, tmp_path / "plain.safetensors")
    with Alone(tmp_path / "group"):
        save(DistributedDataParallel(model), tmp_path / "ddp.safetensors")
    assert verify(tmp_path / "ddp.safetensors") == verify(tmp_path / "plain.safetensors")


def test_a_model_that_fully_shard_has_spread_is_saved_whole(model, tmp_path):
    from torch.distributed.fsdp import fully_shard

    save(model, tmp_path / "plain.safetensors")
    with Alone(tmp_path / "group"):
        fully_shard(model.backbone.middle_block[0])
        fully_shard(model.backbone)
        save(model, tmp_path / "spread.safetensors")
    assert verify(tmp_path / "spread.safetensors") == verify(tmp_path / "plain.safetensors")


SPREAD = f"""
import sys
import torch
from torch.distributed.fsdp import fully_shard
from ldmkit.model import compose
from ldmkit.parts import Recipe
from ldmkit.weights.native import save, verify

folder, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method="file://" + folder + "/group", rank=rank, world_size=2)
torch.manual_seed(0)
model = compose(Recipe.from_json({RECIPE.to_json()!r}))
if not rank:
    save(model, folder + "/plain.safetensors")
fully_shard(model.backbone)
save(model, folder + "/spread.safetensors", max_shard_bytes=300_000)
torch.distributed.barrier()
assert verify(folder + "/spread.safetensors") == verify(folder + "/plain.safetensors")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_write_one_model(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", SPREAD, str(tmp_path), rank], env=environment, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    errors = [run.communicate(timeout=120)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors


def test_an_unwrapped_name_that_only_looks_like_a_wrapper_is_kept(model, tmp_path):
    model.backbone._orig_mod = nn.Identity()
    with pytest.raises(CompositionError, match="_orig_mod is there"):
        save(model, tmp_path / "model.safetensors")
