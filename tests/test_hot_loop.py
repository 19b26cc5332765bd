"""The loop's promises that can be counted: what is computed once per call, and what is left per step."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ldmkit
from ldmkit.guidance import CFG
from ldmkit.model import compose
from ldmkit.noise import Noise
from ldmkit.samplers.ddim import DDIM
from ldmkit.samplers.ddpm import DDPM
from ldmkit.samplers.dpmpp import DPMPP2M, DPMPP2MSDE, DPMPP2S
from ldmkit.samplers.euler import Euler, EulerAncestral
from ldmkit.samplers.heun import Heun
from ldmkit.samplers.plms import PLMS
from ldmkit.samplers.unipc import UniPC


class Counting(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model():
    return compose(ldmkit.build("recipe", "digits")).eval()


def counts(model, steps, **options):
    levels = model.process.levels(steps)
    with Counting() as counting:
        model.sample({"label": torch.tensor([1])}, size=(32, 32), levels=levels, guidance=CFG(2.0), **options)
    return counting.counts


@pytest.mark.parametrize(
    "sampler", [DDIM(), DDIM(eta=1.0), DDPM(), PLMS(), Heun(), DPMPP2S(), DPMPP2MSDE(), UniPC()], ids=str
)
def test_a_step_reads_nothing_back_from_the_device(model, sampler):
    a, b = counts(model, 4, sampler=sampler), counts(model, 9, sampler=sampler)
    for waits in ("_local_scalar_dense", "item", "nonzero", "is_nonzero"):
        assert a.get(waits, 0) == b.get(waits, 0), waits


def test_time_embeddings_and_context_are_computed_once_per_call(model):
    """Per step: no cosine of a time, no embedding look-up, and fewer products than a call of the network makes."""
    a, b = counts(model, 4), counts(model, 9)
    for once in ("cos", "sin", "embedding", "linspace", "arange"):
        assert a.get(once, 0) == b.get(once, 0), once
    products = [name for name in b if name in ("addmm", "mm", "linear", "bmm")]
    per_step = sum(b[name] - a.get(name, 0) for name in products) / 5
    with torch.inference_mode():
        cond = model.conditioner({"label": torch.tensor([1])})
    with torch.inference_mode(), Counting() as counting:
        model.backbone(torch.zeros(1, model.backbone.channels, 8, 8), torch.zeros(1), context=cond.context)
    whole = sum(counting.counts.get(name, 0) for name in products)
    assert per_step < whole


MOST = [
    *((DDIM(), 2), (DDIM(eta=1.0), 4), (DDPM(), 4), (PLMS(), 12), (Euler(), 2), (EulerAncestral(), 4), (Heun(), 4)),
    *((DPMPP2M(), 3), (DPMPP2S(), 4), (DPMPP2MSDE(), 5), (UniPC(), 4), (UniPC(3), 5)),
]


@pytest.mark.parametrize(("sampler", "most"), MOST, ids=str)
def test_a_sampler_makes_few_operations_per_step(sampler, most):
    def run(steps):
        levels = ldmkit.build("process", "vp").levels(steps)
        with Counting() as counting, torch.inference_mode():
            sampler(lambda x, level: x, torch.zeros(1, 4, 8, 8), levels, Noise((1,)))
        return sum(count for name, count in counting.counts.items() if name not in ("detach", "lift_fresh"))

    assert (run(25) - run(15)) / 10 <= most
