"""The oracle reads back exactly what was drawn, and says how far anything else is from a scene."""

from typing import get_args

import numpy as np
import pytest
import torch

from ldmkit.data.oracle import connected, read_scene
from ldmkit.data.raster import render
from ldmkit.data.scenes import SHAPES, SIZES, Item, Scene, Split, draw_scene, span

SPLITS = get_args(Split)


def wrong(side, count, seed):
    """The scenes that are not read back from their own picture, to the last bit."""
    scenes = [draw_scene(seed, i, SPLITS[i % 5]) for i in range(count)]
    read = [read_scene(render(scene, side)) for scene in scenes]
    return [(scene, got) for scene, got in zip(scenes, read, strict=True) if got.scene != scene or got.residual]


@pytest.mark.parametrize(("side", "count"), [(32, 100), (45, 40), (64, 60), (128, 20), (256, 10)])
def test_clean_scenes_are_read_back_exactly(side, count):
    assert not wrong(side, count, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "count"), [(32, 3000), (64, 1500), (100, 500), (128, 500), (256, 200)])
def test_many_clean_scenes_are_read_back_exactly(side, count):
    assert not wrong(side, count, seed=12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_objects_at_the_border_are_read_back(shape, size):
    for y in span(size):
        for x in span(size):
            scene = Scene("brown", (Item(y=y, x=x, shape=shape, colour="green", size=size),))
            assert read_scene(render(scene, 32)).scene == scene


def test_an_empty_canvas_is_a_scene_without_objects():
    assert read_scene(render(Scene("navy", ()), 32)).scene == Scene("navy", ())


def test_values_and_bytes_are_read_alike():
    image = render(draw_scene(0, 4), 48)
    values = (image.double() / 255).requires_grad_()
    assert read_scene(values) == read_scene(values.float()) == read_scene(image)
    assert read_scene(values.float() * 1.2 - 0.1).scene == read_scene(image).scene


def test_noise_leaves_the_scene_and_shows_in_the_residual():
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        scene = draw_scene(5, i)
        image = render(scene, 32) / 255
        got = read_scene(image + 10 / 255 * torch.randn(image.shape, generator=generator))
        assert got.scene == scene
        assert 5 < got.residual < 10


def test_what_is_no_scene_has_a_large_residual():
    assert read_scene(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))).residual > 50


@pytest.mark.parametrize(
    "rows", [["..#.#", "..#.#", "..###"], ["#.#", ".#.", "#.#"], ["###", "#.#", "###"], ["###", "#.#"], ["...."], ["#"]]
)
def test_parts_that_hang_together_are_found(rows):
    marked = np.array([[mark == "#" for mark in row] for row in rows])
    todo = {(y, x) for y, x in np.argwhere(marked).tolist()}
    expected = []
    while todo:
        part, ahead = set(), [todo.pop()]
        while ahead:
            y, x = ahead.pop()
            part.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & todo
            todo -= near
            ahead += near
        expected.append(sorted(part))
    assert sorted(sorted(part) for part in connected(marked)) == sorted(expected)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.zeros(1, 64, 64), r"\(3, side, side\), got shape \(1, 64, 64\)"),
        (torch.zeros(3, 64, 32), r"\(3, 64, 32\)"),
        (torch.zeros(3, 16, 16), "32 to 1024"),
        (torch.full((3, 32, 32), torch.nan), "finite"),
    ],
)
def test_what_cannot_be_read_is_refused(image, says):
    with pytest.raises(ValueError, match=says):
        read_scene(image)
