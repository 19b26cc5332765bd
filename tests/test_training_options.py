"""What makes a run smaller or faster trains the same weights: recomputed activations, parts of a batch, compilation."""

import pytest
import torch
from distributed.unet import model, records, run
from safetensors import safe_open
from safetensors.torch import load_file

import ldmkit
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.log import read_log
from ldmkit.training.loop import train


def trained(out, made=None, **options):
    """The exported weights of a short run."""
    return load_file(train(Diffusion(made or model(), "class-conditional"), records(), run(out, **options)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a plain run learns."""
    return trained(tmp_path_factory.mktemp("whole"))


def apart(one, other):
    """How far two results are from one another, relative to what was learned."""
    assert one.keys() == other.keys()
    start = model().state_dict()
    assert one.keys() == start.keys()
    learned = torch.cat([(one[name] - start[name]).double().flatten() for name in one]).norm()
    assert learned > 0.01
    return float(torch.cat([(one[name] - other[name]).double().flatten() for name in one]).norm() / learned)


def test_recomputed_activations_train_the_same_weights(whole, tmp_path):
    assert apart(trained(tmp_path, model(checkpoint=True)), whole) < 1e-5


def test_parts_of_a_batch_train_the_same_weights(whole, tmp_path):
    assert apart(trained(tmp_path, accumulate=2), whole) < 1e-5


def test_bfloat16_learns_about_the_same_in_float32(whole, tmp_path):
    half = trained(tmp_path, precision=torch.bfloat16)
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert 1e-6 < apart(half, whole) < 0.1


def test_the_fused_optimizer_learns_what_the_plain_one_does(tmp_path):
    def single(weights):
        return torch.optim.AdamW(weights, lr=0.0, eps=1e-3, fused=False)

    def fused(weights):
        return torch.optim.AdamW(weights, lr=0.0, eps=1e-3, fused=True)

    one, other = (trained(tmp_path / make.__name__, optimizer=make) for make in (single, fused))
    assert apart(one, other) < 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, as it traces
def test_a_compiled_backbone_trains_the_same_weights_under_the_same_names(whole, tmp_path):
    made = model()
    made.backbone.compile(backend="aot_eager")  # all of it but the code generation
    assert apart(trained(tmp_path / "run", made), whole) < 1e-5
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model().state_dict())
    batch = {"label": torch.tensor([1])}
    loaded = ldmkit.load(tmp_path / "run" / "model.safetensors")
    images = [each.sample(batch, size=(8, 8), levels=2) for each in (made, loaded)]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


def test_the_log_says_how_often_a_gradient_was_clipped(tmp_path):
    always = trained(tmp_path / "always", clip=1e-6)
    never = trained(tmp_path / "never", clip=1e6)
    trained(tmp_path / "none", clip=None)
    for name, share in {"always": 1, "never": 0, "none": None}.items():
        lines = read_log(tmp_path / name / "log.jsonl")
        assert [line.get("diffusion/clipped") for line in lines] == [share] * 3
    assert apart(never, always) > 0.9
