"""The demo: every class of the bundled model, with three samplers and two guidance scales, on one labelled sheet."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldmkit.demo import CLASSES, DIGITS, RECORD, SIZE
from ldmkit.pipelines import Pipeline, pipeline

RUNS = (("ddpm", 250), ("ddim", 50), ("plms", 50))
SCALES = (1.0, 2.0)
ZOOM, GAP, LEFT, TOP = 2, 4, 190, 56
CELL = SIZE * ZOOM + GAP


def main(argv: Sequence[str] | None = None) -> int:
    """Sample, write the sheet, print where it is and how long it took."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the digit 0; digit k has seed + k")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    pipe = pipeline("class-conditional", DIGITS, device=options.device)
    print(pipe.model)
    rows = [row for sampler, steps in RUNS for row in sample_rows(pipe, sampler, steps, options.seed)]
    path = options.out / "digits.png"
    contact_sheet(rows, caption()).save(path)
    print(f"{len(rows) * CLASSES} digits in {time.perf_counter() - begun:.1f} s, on {options.device}")
    print(f"wrote {path.resolve()}")
    return 0


def sample_rows(pipe: Pipeline, sampler: str, steps: int, seed: int) -> list[tuple[str, list[Image.Image]]]:
    """One row per guidance scale: (caption, an image of every class). Rows share their seeds."""
    rows = []
    for scale in SCALES:
        begun = time.perf_counter()
        out = pipe(
            label=list(range(CLASSES)),
            height=SIZE,
            width=SIZE,
            sampler=sampler,
            num_inference_steps=steps,
            guidance_scale=scale,
            seed=seed,
        )
        took = time.perf_counter() - begun
        print(f"{sampler:5} {steps:4} steps  guidance {scale:3.1f}  {took:5.1f} s")
        rows.append((f"{sampler.upper()}, {steps} steps\nguidance {scale:.1f}   {took:.1f} s", out.images))
    return rows


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], title: str) -> Image.Image:
    """Rows of images on one picture, with a caption per row and the class over each column."""
    sheet = Image.new("RGB", (LEFT + CLASSES * CELL + GAP, TOP + len(rows) * CELL + GAP), "white")
    draw, small, large = ImageDraw.Draw(sheet), ImageFont.load_default(12), ImageFont.load_default(16)
    draw.text((GAP * 2, GAP * 2), title, fill="black", font=small)
    for digit in range(CLASSES):
        draw.text((LEFT + digit * CELL + CELL // 2, TOP - 22), str(digit), fill="black", font=large, anchor="ma")
    for row, (text, images) in enumerate(rows):
        top = TOP + row * CELL
        draw.multiline_text((GAP * 2, top + CELL // 2), text, fill="black", font=small, anchor="lm", spacing=6)
        for column, image in enumerate(images):
            enlarged = image.convert("RGB").resize((SIZE * ZOOM, SIZE * ZOOM), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (LEFT + column * CELL, top))
    return sheet


def caption() -> str:
    """What the sheet shows, with the measured share of right classes."""
    record = json.loads(RECORD.read_text())
    share, ceiling = record["class_share"]["ddim"], record["class_share"]["real test digits"]
    return f"handwritten digits, trained on 1,442 real ones; {share:.2%} of samples read as asked (real: {ceiling:.2%})"
