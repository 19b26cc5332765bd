"""Every task has a page, and the picture on a page is what the code of the page makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmkit.builtin import TABLE

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "tasks").glob("*.md"))
NEAR = 8.0
"""Mean difference in bytes: rounding differs between machines, and grows over a trajectory."""


def shown(page: Path) -> list[Path]:
    """The pictures on a page."""
    return [page.parent / name for name in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8"))]


def difference(one: Path, other: Path) -> float:
    """Mean absolute difference in bytes; infinite for two sizes."""
    pixels = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean()) if pixels[0].shape == pixels[1].shape else float("inf")


@pytest.mark.parametrize("name", sorted(TABLE["task"]))
def test_every_task_is_called_on_a_page(name: str) -> None:
    assert any(f'ldmkit.pipeline("{name}"' in page.read_text(encoding="utf-8") for page in PAGES)


def test_every_picture_is_on_a_page_and_small() -> None:
    pictures = [picture for page in PAGES for picture in shown(page)]
    assert sorted(pictures) == sorted((ROOT / "docs" / "tasks").glob("*.png"))
    assert all(picture.stat().st_size < 150_000 for picture in pictures)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)], ids=lambda page: page.stem)
def test_the_picture_on_a_page_is_what_its_code_makes(page: Path, tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(ROOT / "tests" / "test_docs.py"), str(page)]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True)
    for kept in shown(page):
        assert difference(tmp_path / kept.name, kept) < NEAR


def test_a_mirrored_picture_is_told_apart(tmp_path: Path) -> None:
    kept = ROOT / "docs" / "tasks" / "class-conditional.png"
    with Image.open(kept) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    assert difference(kept, kept) == 0
    assert difference(tmp_path / "other.png", kept) > NEAR
