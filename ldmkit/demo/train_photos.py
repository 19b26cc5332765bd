"""Train the bundled first stages of photographs: ``kl`` from nothing, ``vq`` from what ``kl`` has learned.

    python -m ldmkit.demo.train_photos kl --out runs/photos
    python -m ldmkit.demo.train_photos vq --out runs/photos

Random crops of few photographs, mirrored and recoloured, and the absolute error. There is no adversary and no
perceptual distance: both give PSNR, which is what is measured, away for sharpness.

A run can be stopped at any time and goes on where it was. ``--start FILE`` begins a new one at the weights of a first
stage that was trained before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from time import process_time
from typing import cast

import torch
from torch import Tensor, nn

from ldmkit.data import Chain, Flip, RandomCrop
from ldmkit.demo.photos import NAMES, STAGES, TRAINING, Recolour, bundled, crops, photograph, records
from ldmkit.first_stages.autoencoder import Decoder, Encoder
from ldmkit.first_stages.kl import KL
from ldmkit.first_stages.vq import VQ, nearest_rows
from ldmkit.latents import latent_statistics
from ldmkit.registry import build_part
from ldmkit.training.compression import Compression, load_first_stage, save_first_stage
from ldmkit.training.first_stage import CodebookWeight, FirstStageLoss, KLWeight, Regulariser, l1
from ldmkit.training.loop import train
from ldmkit.training.optim import AdamW, cosine
from ldmkit.training.order import sample_seeds
from ldmkit.training.run import Run

SEED = 211210752
BATCH, CROP = 8, 32
STEPS = {"kl": 1200, "vq": 400}
RATES = {"kl": 1e-4, "vq": 5e-5}
REGULARISERS: Mapping[str, Regulariser] = {"kl": KLWeight(1e-7), "vq": CodebookWeight(1.0)}
AUGMENT = Chain((RandomCrop(CROP), Flip(), Recolour()))
ANCHOR, NARROW = 4.0, -8.0
POINT = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
QUARTERS = torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])
MEASURED = 1024
ROUNDS = 6


@dataclass
class Processor:
    """Adds up the seconds of the processor over the interruptions of a run: a watcher of its log.

    Args:
        path: the file that keeps the sum.
    """

    path: Path
    _last: float = field(default_factory=process_time)

    def __call__(self, numbers: Mapping[str, float], step: int) -> None:
        """Add what was spent since the last line."""
        now = process_time()
        self.path.write_text(str(self.seconds + now - self._last))
        self._last = now

    @property
    def seconds(self) -> float:
        """The sum."""
        return float(self.path.read_text()) if self.path.exists() else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Train one first stage and write it in half precision."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.train_photos", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, default=Path("runs/photos"), help="folder for progress and the result")
    parser.add_argument("--steps", type=int, default=None, help=f"default: {STEPS}")
    parser.add_argument("--start", type=Path, default=None, help="a first stage of the same name to begin with")
    options = parser.parse_args(argv)
    path = trained(options.name, options.out, options.steps or STEPS[options.name], options.start)
    print(json.dumps({"threads": torch.get_num_threads(), "wrote": str(path)}))
    return 0


def trained(name: str, out: Path, steps: int, start: Path | None = None) -> Path:
    """One first stage, from where its run is.

    Returns:
        The file, its scale measured and its weights in half precision.
    """
    torch.manual_seed(SEED)  # the first weights
    stage = begun(name) if start is None else cast(nn.Module, load_first_stage(start)).float().train()
    spent = Processor(out / name / "processor.txt")
    run = Run(
        out=out / name,
        steps=steps,
        batch=BATCH,
        rate=cosine(RATES[name], steps, warm_up=min(50, steps // 2)),
        ema=0.99,
        seed=SEED,
        save_every=100,
        show_every=50,
        log_every=min(20, steps),
        optimizer=centred,
        watch=(spent,),
    )
    trainee = Compression(stage, FirstStageLoss(None, REGULARISERS[name], l1), shown=shown())
    learned = cast(KL | VQ, load_first_stage(train(trainee, records(), run, AUGMENT)))
    learned.scale.mul_(latent_statistics(learned, some_crops(MEASURED)).rescaling)
    notes = {
        "data": f"random crops of {CROP} x {CROP} of {len(TRAINING)} photographs: {', '.join(TRAINING)}",
        "command": f"python -m ldmkit.demo.train_photos {name}" + ("" if start is None else f" --start {start.name}"),
        "seed": SEED,
        "batch": BATCH,
        "steps": steps,
        "processor_seconds": round(spent.seconds),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "weights": "exponential moving average, decay 0.99; in float16",
        "license": "MIT",
    }
    return save_first_stage(learned.half(), out / f"photos-{name}.safetensors", notes)


def centred(weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW of gradients of which the mean over each filter is taken away.

    What a convolution reads here is positive on the whole, so that this is the direction in which all weights of a
    filter change its brightness together: much the steepest, and not one in which there is much to learn.

    Source: Yong et al. 2020, eq. 1.
    """
    optimizer = AdamW(weight_decay=0.0)(weights)
    optimizer.register_step_pre_hook(_centre)
    return optimizer


def _centre(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        if weight.ndim == 4 and weight.grad is not None:
            weight.grad -= weight.grad.mean(dim=(1, 2, 3), keepdim=True)


def begun(name: str) -> nn.Module:
    """The first stage before its first step."""
    if name == "vq":
        return quantised(cast(KL, bundled("kl")))
    stage: KL = build_part("first-stage", STAGES[name])
    return begin_as_blocks(stage)


@torch.no_grad()
def begin_as_blocks(stage: KL) -> KL:
    """First weights with which the latent is the mean colour of each block of pixels, and decoding repeats it.

    Learning starts from there and not from noise, which saves most of the steps. Residual branches begin at 0, the
    posterior is narrow, and every third channel carries a colour or its negative.

    Args:
        stage: with widths of 96 where it begins and ends, three channels to a group, and three channels of latent.
    """
    for name, module in stage.named_modules():
        if name.endswith("conv2"):
            _fill(module, torch.zeros(3, 3))
        elif name.endswith("downsample.conv"):
            _carry(module, QUARTERS)
        elif name.endswith("upsample.conv"):
            _carry(module, POINT)
        elif name.endswith("nin_shortcut"):
            _carry(module, POINT[1:2, 1:2], lambda channel: channel % 18)
    _open(stage.encoder, stage.encoder.get_submodule("mid.block_2"))
    _open(stage.decoder, stage.decoder.get_submodule("up.0.block.1"))
    for project in (stage.quant_conv, stage.post_quant_conv):
        cast(Tensor, project.bias).zero_()
        project.weight.zero_()[: stage.channels, : stage.channels, 0, 0] = torch.eye(stage.channels)
    cast(Tensor, stage.quant_conv.bias)[stage.channels :] = NARROW
    return stage


def _open(network: Encoder | Decoder, last: nn.Module) -> None:
    """Colours in at the first layer and out at the last, past a norm that would take brightness and contrast away.

    After the last block, the two channels beside a colour x are constants A and -A. The norm takes the three together
    and makes (x - m, A - m, -A - m) / s, where m is a third of the mean of x and s hardly depends on x. Because
    swish(u) - swish(-u) = u, a group that carries -x is subtracted from one that carries x; half of the constants gives
    m back.
    """
    first, out = network.conv_in, network.conv_out
    _carry(first, POINT, _colour)
    first.weight *= torch.tensor([_sign(channel) for channel in range(first.out_channels)])[:, None, None, None]
    constants = last.get_parameter("conv2.bias")
    constants[1::3], constants[2::3] = ANCHOR, -ANCHOR
    part = ANCHOR * (2 / 3) ** 0.5 * torch.tensor([1.0, -0.5, -0.5])
    _fill(out, torch.zeros(3, 3))
    for colour, sign in product(range(3), (1, -1)):
        own = [c for c in range(0, out.in_channels, 3) if (_colour(c), _sign(c)) == (colour, sign)]
        for place in range(3):
            out.weight[colour, [c + place for c in own], 1, 1] = sign * part[place] / len(own)


def _colour(channel: int) -> int:
    """Of what a third channel carries."""
    return channel // 3 % 3


def _sign(channel: int) -> int:
    """Of what a third channel carries."""
    return 1 - 2 * (channel // 9 % 2)


def _fill(conv: nn.Module, kernel: Tensor) -> None:
    """The same kernel between all channels, and no bias."""
    conv.get_parameter("weight").copy_(kernel.expand_as(conv.get_parameter("weight")))
    conv.get_parameter("bias").zero_()


def _carry(conv: nn.Module, kernel: Tensor, given: Callable[[int], int] = lambda channel: channel) -> None:
    """Every third channel from one channel by a kernel, the others 0; an identity stays one."""
    if isinstance(conv, nn.Identity):
        return
    weight = conv.get_parameter("weight")
    _fill(conv, torch.zeros_like(kernel))
    for channel in range(0, len(weight), 3):
        weight[channel, given(channel)] = kernel


@torch.no_grad()
def quantised(source: KL) -> VQ:
    """A ``vq`` that reconstructs what a ``kl`` does from its mean, up to the distance to a code.

    Raw latents are those of ``source`` as it scales them, and the codes are centres of clusters of them.
    """
    stage: VQ = build_part("first-stage", STAGES["vq"])
    C, conv, project = source.channels, source.encoder.conv_out, source.quant_conv
    mean = project.weight[:C, :, 0, 0] * source.scale
    rows = torch.cat([source.encode(image) for image in some_crops(MEASURED)]).permute(0, 2, 3, 1).flatten(0, 2)
    replaced = {
        "encoder.conv_out.weight": torch.einsum("om,mikl->oikl", mean, conv.weight),
        "encoder.conv_out.bias": mean @ cast(Tensor, conv.bias) + cast(Tensor, project.bias)[:C] * source.scale,
        "quant_conv.weight": torch.eye(C)[:, :, None, None],
        "quant_conv.bias": torch.zeros(C),
        "post_quant_conv.weight": source.post_quant_conv.weight / source.scale,
        "quantize.embedding.weight": centres(rows, stage.codebook_size),
        "scale": torch.ones(()),
    }
    stage.load_state_dict({**source.state_dict(), **replaced})
    return stage


def centres(rows: Tensor, count: int) -> Tensor:
    """Means of clusters of vectors (N, C), by Lloyd's algorithm from ``count`` of them -> (count, C)."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))
    codes = rows[order[:count]]
    for _ in range(ROUNDS):
        nearest = nearest_rows(rows, codes)
        held = torch.bincount(nearest, minlength=count)[:, None]
        codes = torch.where(held > 0, torch.zeros_like(codes).index_add_(0, nearest, rows) / held, codes)
    return codes


def shown() -> list[Tensor]:
    """Crops of the training photographs, to follow a run by: eight of each."""
    return [crop for name in TRAINING for crop in crops(photograph(name))[4::8][:8]]


def some_crops(count: int) -> Iterator[Tensor]:
    """Crops as in training, (8, 3, CROP, CROP) in [-1, 1] each."""
    photographs, seeds = records(), sample_seeds(SEED, 0, count)
    for first in range(0, count, 8):
        places = range(first, first + 8)
        shown = [AUGMENT(photographs[i % len(photographs)], seeds[i])["target"] for i in places]
        yield torch.stack(shown) * 2 - 1


if __name__ == "__main__":
    raise SystemExit(main())
