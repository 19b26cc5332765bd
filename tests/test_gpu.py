"""What only a CUDA device can show: the same images as on a CPU, low precision, and a loop that never waits."""

import pytest
import torch

import ldmkit
from ldmkit.conditioning import Conditioning
from ldmkit.guidance import CFG
from ldmkit.model import compose
from ldmkit.noise import Noise
from ldmkit.process import Level

pytestmark = pytest.mark.gpu


@pytest.fixture
def model():
    return compose(ldmkit.build("recipe", "digits")).eval()


def sample(model, **options):
    return model.sample({"label": torch.tensor([1, 2])}, size=(32, 32), seed=3, guidance=CFG(2.0), **options)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "plms"])
def test_a_gpu_gives_the_images_of_a_cpu(model, sampler):
    options = {"levels": 10, "sampler": ldmkit.build("sampler", sampler)}
    here = sample(model, **options)
    there = sample(model.cuda(), **options).cpu()
    assert float((here - there).abs().max() / here.abs().max()) < 1e-2  # TF32 convolutions over ten steps


def test_noise_is_the_same_on_every_device():
    like, level = torch.empty(2, 3, 4, 4), Level(5.0, 0.5, 0.5)
    assert torch.equal(Noise((1, 2))(like.cuda(), level).cpu(), Noise((1, 2))(like, level))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_networks_keep_a_float32_state(model, dtype):
    z = sample(model.cuda().cast(dtype), levels=5)
    assert z.dtype == torch.float32
    assert bool(z.isfinite().all())


@pytest.mark.parametrize("name", ["ddim", "plms", "ddpm"])
def test_the_loop_never_waits_for_the_device(model, name):
    model = model.cuda()
    levels = model.process.levels(5)
    cond = model.conditioner(model.filled({"label": torch.tensor([1, 2])}))
    uncond = model.conditioner.null(model.filled({"label": torch.tensor([1, 2])}))
    x = torch.randn(2, model.backbone.channels, 8, 8, device="cuda")
    with torch.inference_mode():
        denoise = CFG(2.0)(lambda c: model.denoiser.bind(c, levels), cond, uncond, levels)
        denoise(x, levels.start)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            ldmkit.build("sampler", name)(denoise, x, levels, Noise((1, 2)))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_conditioning_moves_as_one():
    moved = Conditioning(context=torch.zeros(1, 2, 3), label=torch.zeros(1, dtype=torch.int64)).to(torch.device("cuda"))
    assert moved.context.is_cuda
    assert moved.label.is_cuda
