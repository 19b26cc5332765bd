"""Measure the bundled first stages on photographs beside bicubic resampling, and write the record beside them.

    python -m ldmkit.demo.evaluate_photos --sheet docs/train/photographs.png

The baseline keeps as many numbers: three colours at a quarter of each side, as three channels at a quarter are. It is
antialiased going down, and resamples the whole photograph, so that it sees beyond the crops that count; first stages
see one crop at a time. ``kl-bytes`` is ``kl`` with every number of its latent rounded to a byte, which makes it equal
in bits as well; the numbers of the baseline are not rounded. ``kl-begun`` is ``kl`` before its first step.

``psnr_db`` is that of all crops of a photograph as one image, ``psnr_of_crops_db`` and ``ssim`` are means over crops
with standard errors. A flat crop counts as much as any in the latter, and hardly in the former. ``margin`` is the
difference to the baseline, crop by crop.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from torch import Tensor, nn

from ldmkit.composition import FirstStage
from ldmkit.demo.photos import HELD_OUT, NAMES, RECORD, SIDE, TRAINING, bicubic, bundled, crops, file, photograph
from ldmkit.demo.train_photos import begun
from ldmkit.first_stages import VQ, codebook_usage
from ldmkit.images import to_pil
from ldmkit.training.metrics import psnr, ssim
from ldmkit.weights.atomic import write_atomically

BYTE = 32.0
SHOWN = (("chelsea", 9), ("coffee", 22), ("flower", 24), ("flower", 36))
ZOOM, GAP, TOP = 3, 6, 24
Codec = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [0, 1] -> what is left of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the record, and the picture where one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.evaluate_photos", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--sheet", type=Path, default=None, help="a picture of held-out crops to write")
    options = parser.parse_args(argv)
    stages = {name: bundled(name) for name in NAMES}
    compared = codecs(stages)
    record = {
        "measured_with": "python -m ldmkit.demo.evaluate_photos",
        "crop": SIDE,
        "versions": {name: version(name) for name in ("torch", "scikit-image", "scikit-learn")},
        "python": platform.python_version(),
        "first_stages": {name: told(name, stage) for name, stage in stages.items()},
        "held_out": {name: scores(name, compared) for name in HELD_OUT},
        "training": {name: scores(name, compared) for name in TRAINING},
    }
    record["margin"] = {split: margins(cast(Any, record[split])) for split in ("held_out", "training")}
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(options.out, lambda partial: partial.write_text(text))
    print(json.dumps(record["margin"], indent=2))
    if options.sheet is not None:
        sheet(compared).save(options.sheet, optimize=True)
    return 0


def codecs(stages: Mapping[str, FirstStage]) -> dict[str, Codec]:
    """What is compared with the baseline, by name."""
    found = {name: coding(stage) for name, stage in stages.items()}
    start = cast(FirstStage, begun("kl").eval())
    return found | {"kl-bytes": coding(stages["kl"], in_bytes), "kl-begun": coding(start)}


def coding(stage: FirstStage, kept: Codec = lambda z: z) -> Codec:
    """Encode and decode, some crops at a time.

    Args:
        stage: takes images in [-1, 1].
        kept: what is kept of a latent.
    """

    @torch.no_grad()
    def code(image: Tensor) -> Tensor:
        made = [stage.decode(kept(stage.encode(part * 2 - 1))) for part in torch.split(image, 16)]
        return (torch.cat(made) / 2 + 0.5).clamp(0, 1)

    return code


def in_bytes(z: Tensor) -> Tensor:
    """A scaled latent with every number one of 256, in [-4, 4)."""
    return (z * BYTE).round().clamp(-128, 127) / BYTE


def told(name: str, stage: FirstStage) -> dict[str, Any]:
    """How a first stage was trained, its size, and how many of its codes the held-out photographs use."""
    with safe_open(file(name), "pt") as opened:
        notes = json.loads(opened.metadata()["notes"])
    module = cast(nn.Module, stage)
    record = {
        "trained": notes,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "latent": [stage.channels, SIDE // stage.factor, SIDE // stage.factor],
    }
    if isinstance(stage, VQ):
        with torch.no_grad():
            found = [stage.to_indices(stage.encode(crops(photograph(one)) * 2 - 1)) for one in HELD_OUT]
        usage = codebook_usage(torch.cat(found), stage.codebook_size)
        record["codes"] = {
            "of": stage.codebook_size,
            "used_by_held_out": int(usage.used),
            "perplexity": round(float(usage.perplexity), 1),
        }
    return record


def scores(name: str, compared: Mapping[str, Codec]) -> dict[str, Any]:
    """What baseline and first stages make of a photograph."""
    image, baseline = crops(photograph(name)), crops(bicubic(_cut(photograph(name))))
    record: dict[str, Any] = {"crops": len(image), "bicubic": quality(image, baseline)}
    for key, code in compared.items():
        made = code(image)
        record[key] = quality(image, made) | {
            "margin_db": rounded(whole_psnr(image, made) - whole_psnr(image, baseline)),
            "margin_of_crops_db": spread(psnr(image, made) - psnr(image, baseline)),
        }
    return record


def quality(image: Tensor, made: Tensor) -> dict[str, Any]:
    """How near crops are to what they were."""
    return {
        "psnr_db": rounded(whole_psnr(image, made)),
        "psnr_of_crops_db": spread(psnr(image, made)),
        "ssim": spread(ssim(image, made)),
    }


def whole_psnr(image: Tensor, made: Tensor) -> float:
    """The PSNR of crops taken as one image, in dB."""
    return float(-10 * (image - made).double().square().mean().log10())


def spread(values: Tensor) -> list[float]:
    """Mean and standard error."""
    return [rounded(float(values.mean())), rounded(float(values.std() / len(values) ** 0.5))]


def rounded(value: float) -> float:
    """To four digits after the point."""
    return round(value, 4)


def margins(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Means over photographs of the margins over the baseline, and the smallest."""
    keys = [key for key in next(iter(record.values())) if key not in ("crops", "bicubic")]
    found = {key: [photograph[key]["margin_db"] for photograph in record.values()] for key in keys}
    return {key: {"mean_db": rounded(sum(all_) / len(all_)), "least_db": min(all_)} for key, all_ in found.items()}


def sheet(compared: Mapping[str, Codec]) -> Image.Image:
    """Held-out crops, one per row: the photograph, bicubic, kl and vq, each with its PSNR."""
    titles = ("photograph", "bicubic", "kl", "vq")
    cell = SIDE * ZOOM + GAP
    picture = Image.new("RGB", (len(titles) * cell + GAP, len(SHOWN) * (cell + TOP) + TOP + GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((column * cell + cell // 2, GAP), title, fill="black", font=font, anchor="ma")
    for row, (name, place) in enumerate(SHOWN):
        image = crops(photograph(name))[place, None]
        made = [crops(bicubic(_cut(photograph(name))))[place, None], compared["kl"](image), compared["vq"](image)]
        for column, one in enumerate([image, *made]):
            corner = (column * cell + GAP, TOP + row * (cell + TOP))
            enlarged = to_pil(one)[0].resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST)
            picture.paste(enlarged, corner)
            words = name if column == 0 else f"{float(psnr(image, one)):.1f} dB"
            draw.text((corner[0] + cell // 2, corner[1] + cell), words, fill="black", font=font, anchor="ma")
    return picture


def _cut(image: Tensor) -> Tensor:
    """The part of a photograph that its crops cover."""
    rows, columns = (side // SIDE * SIDE for side in image.shape[1:])
    return image[:, :rows, :columns]


if __name__ == "__main__":
    raise SystemExit(main())
