"""Train the bundled model on real digits: both stages, in minutes on two CPU cores.

    python -m ldmkit.demo.train --out runs/digits

The run can be stopped at any time and goes on where it was when started again: batches, noise, times and dropout are
functions of (seed, step). The file written at the end holds the averaged weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ldmkit.demo.digits import WRITERS, Digits, batch_of, jittered, load_digits
from ldmkit.first_stages.kl import KL
from ldmkit.model import LatentDiffusion, compose
from ldmkit.noise import Noise
from ldmkit.recipes.digits import digits
from ldmkit.training import EMA
from ldmkit.weights.native import write_atomically

SEED = 211210752
FIRST_STAGE_BATCH = 32
FIRST_STAGE_STEPS = 1500
BATCH = 64
STEPS = 6000
COPIES = 16
KL_WEIGHT = 5e-5


def main() -> None:
    """Train both stages and write the model."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder for progress and the result")
    parser.add_argument("--first-stage-steps", type=int, default=FIRST_STAGE_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train_digits, _ = load_digits()
    torch.manual_seed(SEED)  # the initial weights, and dropout inside the network
    model = compose(digits())
    stage = cast(KL, model.first_stage)
    seconds = train_first_stage(stage, train_digits, options.first_stage_steps, options.out)
    set_scale(stage, train_digits)
    seconds += train_diffusion(model, latents_of(stage, train_digits), options.steps, options.out)
    notes = {
        "data": f"scikit-learn load_digits, 1,442 training images enlarged to 32 x 32; {WRITERS}",
        "command": "python -m ldmkit.demo.train",
        "seed": SEED,
        "batches": [FIRST_STAGE_BATCH, BATCH],
        "first_stage_steps": options.first_stage_steps,
        "steps": options.steps,
        "weights": "exponential moving average, decay 0.9995; in bfloat16",
        "license": "MIT",
    }
    halved(model.eval()).save(options.out / "digits.safetensors", notes)
    print(json.dumps({"seconds": round(seconds), "threads": torch.get_num_threads(), "wrote": str(options.out)}))


def halved(model: LatentDiffusion) -> LatentDiffusion:
    """The weights in bfloat16, those of the first stage too, for a file of half the size; its scale stays float32."""
    for parameter in model.first_stage.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model.cast(torch.bfloat16)


def train_first_stage(stage: KL, data: Digits, steps: int, out: Path) -> float:
    """Reconstruction plus a weakly weighted KL to N(0, 1): E and D of the paper without the adversarial term."""
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3, weight_decay=0.0)

    def loss_of(step: int) -> Tensor:
        image, _, seeds = batch_of(data, SEED, step, FIRST_STAGE_BATCH)
        noise = Noise(seeds)
        image = jittered(image, noise)
        posterior = stage.posterior(image)
        again = stage.decode(posterior.sample(noise.on("posterior").constant(posterior.mean)) * stage.scale)
        distance = functional.l1_loss(again, image) + functional.mse_loss(again, image)
        return distance + KL_WEIGHT * posterior.kl().mean()

    return run(
        "first stage",
        stage,
        optimizer,
        EMA(stage, 0.999),
        loss_of,
        steps,
        warm_cosine(1e-3, steps),
        out / "first_stage.pt",
    )


@torch.no_grad()
def set_scale(stage: KL, data: Digits) -> None:
    """Unit standard deviation of the latents over the training images (section D.1 of the paper)."""
    stage.scale.fill_(1.0)
    noise = Noise(tuple(range(len(data))))
    posterior = stage.posterior(data.image)
    stage.scale.fill_(1 / float(posterior.sample(noise.constant(posterior.mean)).std()))


@torch.no_grad()
def latents_of(stage: KL, data: Digits) -> Digits:
    """Every training image in ``COPIES`` jittered versions, encoded once: the first stage is frozen by now."""
    parts = []
    for copy in tqdm(range(COPIES), desc="encoding", unit="copy"):
        noise = Noise(tuple(SEED * 2**20 + copy * len(data) + i for i in range(len(data))))
        posterior = stage.posterior(jittered(data.image, noise))
        parts.append(stage.scale * posterior.sample(noise.on("posterior").constant(posterior.mean)))
    return Digits(torch.cat(parts), data.label.repeat(COPIES))


def train_diffusion(model: LatentDiffusion, latents: Digits, steps: int, out: Path) -> float:
    """The denoising objective, with the class dropped for one sample in ten."""
    trained = nn.ModuleList([model.denoiser, *([model.conditioner] if model.conditioner is not None else [])])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.01)

    def loss_of(step: int) -> Tensor:
        z, label, seeds = batch_of(latents, SEED + 1, step, BATCH)
        return model.loss({"latent": z, "label": label}, seeds)

    model.train()
    return run(
        "diffusion",
        trained,
        optimizer,
        EMA(trained, 0.9995),
        loss_of,
        steps,
        warm_cosine(1e-3, steps),
        out / "diffusion.pt",
    )


def warm_cosine(peak: float, steps: int) -> Callable[[int], float]:
    """The learning rate: up in 200 steps, then half a cosine down to 0."""
    return lambda step: peak * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def run(
    name: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: Callable[[int], float],
    path: Path,
) -> float:
    """Optimise from where ``path`` says the run was, and leave the averaged weights in the module.

    Returns:
        Seconds of training, over all the times the run was started.
    """
    step, seconds, smooth = 0, 0.0, math.nan
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        step, seconds = state["step"], state["seconds"]
    begun = time.perf_counter() - seconds
    with tqdm(total=steps, initial=step, desc=name, unit="step") as bar:
        while step < steps:
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            ema.update(module)
            step += 1
            bar.update()
            if step % 50 == 0:
                smooth = loss.item() if math.isnan(smooth) else 0.7 * smooth + 0.3 * loss.item()
                bar.set_postfix(loss=f"{smooth:.4f}")
            if step % 500 == 0 or step == steps:
                _keep(path, module, optimizer, ema, step, time.perf_counter() - begun)
    ema.copy_to(module)
    return time.perf_counter() - begun


def _keep(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA, step: int, seconds: float) -> None:
    state: dict[str, Any] = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict(),
        "rng": torch.get_rng_state(),
        "step": step,
        "seconds": seconds,
    }
    write_atomically(path, lambda partial: torch.save(state, partial))


if __name__ == "__main__":
    main()
