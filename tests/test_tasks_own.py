"""The task that the documentation writes: short, lawful, and of use without a change in ldmkit."""

from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch
from test_docs import code

from ldmkit.images import read_images
from ldmkit.tasks import Framing, Task

PAGE = Path(__file__).parents[1] / "docs" / "tasks" / "your-own-task.md"


@pytest.fixture(scope="module")
def colourisation():
    """The class as the page defines it."""
    names = {"__name__": "page"}
    exec(compile(code(PAGE)[0][0].text, str(PAGE), "exec", dont_inherit=True), names)
    return names["Colourisation"]()


def test_a_task_takes_under_thirty_lines():
    assert len([line for line in code(PAGE)[0][0].text.splitlines() if line.strip()]) < 30


def test_it_needs_nothing_but_the_two_protocols(colourisation):
    assert is_dataclass(colourisation)
    assert isinstance(colourisation, Task)
    assert isinstance(colourisation, Framing)
    assert type(colourisation).__bases__ == (object,)


def test_the_result_keeps_the_brightness_of_its_own_image(colourisation):
    image = 0.4 + 0.2 * torch.rand(2, 3, 8, 4)
    frame = colourisation.frame({"image": image}, None)
    made = frame.finish(0.4 + 0.2 * torch.rand(6, 3, 8, 4))
    grey = read_images(image, channels=1).repeat_interleave(3, 0)
    torch.testing.assert_close(read_images(made, channels=1), grey)
    assert frame.size == (8, 4)


def test_the_batch_is_the_same_in_colour_and_in_grey(colourisation):
    image = torch.rand(2, 3, 8, 4)
    grey = read_images(image, channels=1)
    torch.testing.assert_close(*(colourisation.prepare({"image": one})["grey"] for one in (image, grey)))
