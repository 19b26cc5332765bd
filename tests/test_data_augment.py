import pytest
import torch

from ldmkit.conditioners.layout_tokens import Box, Point
from ldmkit.data.augment import CenterCrop, Chain, Flip, RandomCrop, Resize

H, W = 12, 20


def record(**more):
    """A rectangle that the image, the mask, the label map and a box all show."""
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    inside = (y >= 3) & (y < 9) & (x >= 4) & (x < 12)
    return {
        "target": inside.float().expand(3, H, W),
        "mask_image": inside.float()[None],
        "segmentation": inside.long() * 7,
        "boxes": [(7, 4 / W, 3 / H, 12 / W, 9 / H, ("group",))],
        "points": [(7, 8 / W, 6 / H)],
        "prompt": "a rectangle",
    } | more


def drawn(shown):
    """What the boxes cover, as pixels."""
    h, w = shown["target"].shape[-2:]
    result = torch.zeros(h, w)
    for box in shown["boxes"]:
        result[round(box.y0 * h) : round(box.y1 * h), round(box.x0 * w) : round(box.x1 * w)] = 1
    return result


STEPS = {
    "flip": Flip(1.0),
    "center": CenterCrop((8, 10), visible=0),
    "random": RandomCrop((8, 10), visible=0),
    "chain": Chain((RandomCrop((10, 16), visible=0), Flip(), CenterCrop((8, 10), visible=0), Flip())),
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", STEPS)
def test_image_mask_map_and_boxes_stay_on_one_another(name, seed):
    shown = STEPS[name](record(), seed)
    assert torch.equal(shown["target"][0], shown["mask_image"][0])
    assert torch.equal(shown["segmentation"], shown["mask_image"][0].long() * 7)
    assert torch.equal(shown["target"][0], drawn(shown))
    assert shown["prompt"] == "a rectangle"
    assert all(box.flags == ("group",) for box in shown["boxes"])


@pytest.mark.parametrize("name", STEPS)
def test_the_seed_alone_decides_and_nothing_given_is_changed(name):
    given = record()
    before = {word: value.clone() if torch.is_tensor(value) else list(value) for word, value in given.items()}
    state = torch.random.get_rng_state()
    one, two = STEPS[name](given, 5), STEPS[name](given, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one["target"], two["target"])
    assert one["boxes"] == two["boxes"]
    assert all(torch.equal(given[word], before[word]) for word in ("target", "mask_image", "segmentation"))
    assert list(given["boxes"]) == before["boxes"]


def test_a_chain_draws_anew_for_each_step():

    twice = [Chain((Flip(), Flip()))(record(), seed)["target"] for seed in range(40)]
    assert 5 < sum(not torch.equal(one, record()["target"]) for one in twice) < 35


def test_every_place_of_a_crop_occurs():
    x = torch.arange(W).expand(3, H, W) / W
    corners = {round(float(RandomCrop((H, W - 3))({"target": x}, seed)["target"][0, 0, 0]) * W) for seed in range(60)}
    assert corners == {0, 1, 2, 3}


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9), (5, 300)])
@pytest.mark.parametrize("side", [6, 17])
def test_the_shorter_side_gets_the_length_and_the_picture_its_proportions(shape, side):
    size = Resize(side)({"target": torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))}, 0)[
        "target"
    ].shape
    assert min(size[1:]) == side
    assert max(size[1:]) == pytest.approx(max(shape) * side / min(shape), abs=0.5)
    assert (size[1] < size[2]) == (shape[0] < shape[1])


def test_resizing_keeps_labels_labels_and_boxes():
    shown = Resize(24)(record(), 0)
    assert torch.equal(shown["segmentation"], record()["segmentation"].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert set(Resize(5)(record(), 0)["segmentation"].unique().tolist()) <= {0, 7}
    assert shown["boxes"] == record()["boxes"]
    assert shown["mask_image"].shape == (1, 24, 40)
    half = Resize(H // 2)({"segmentation": torch.arange(H * W).view(H, W)}, 0)["segmentation"]
    assert torch.equal(half, torch.arange(H * W).view(H, W)[1::2, 1::2])


@pytest.mark.parametrize(("visible", "kept"), [(0.0, 1), (0.49, 1), (0.5, 0)])
def test_a_box_is_kept_if_enough_of_it_is_seen(visible, kept):
    # The middle 4 of 20 columns show 8 to 12: half of the box from 4 to 12.
    shown = CenterCrop((H, 4), visible)(record(points=[]), 0)
    assert shown["boxes"] == [Box(7, 0.0, 3 / H, 1.0, 9 / H, ("group",))][:kept]


def test_points_outside_the_crop_are_left_out():
    shown = CenterCrop((H, 10))(record(points=[(1, 0.1, 0.5), (2, 0.5, 0.5)]), 0)
    assert shown["points"] == [Point(2, 0.5, 0.5)]


def test_flipping_twice_changes_nothing():
    shown = Flip(1.0)(Flip(1.0)(record(), 0), 1)
    assert torch.equal(shown["target"], record()["target"])
    assert shown["boxes"][0].x0 == pytest.approx(4 / W)
    assert torch.equal(Flip(0.0)(record(), 0)["target"], record()["target"])


@pytest.mark.parametrize(
    ("step", "given", "message"),
    [
        (RandomCrop(16), record(), "16 x 16 pixels from a picture of 12 x 20: put Resize"),
        (Flip(), record(low_res=torch.zeros(3, 3, 5)), r"cannot move \['low_res'\]"),
        (Resize(8), record(mask_image=torch.zeros(1, 3, 5)), "one size"),
        (Flip(), {"prompt": ""}, "got none"),
    ],
)
def test_what_cannot_follow_is_refused(step, given, message):
    with pytest.raises(ValueError, match=message):
        step(given, 0)


def test_pictures_that_were_not_read_are_refused():
    with pytest.raises(TypeError, match="Records reads paths"):
        Flip()({"target": "a.png"}, 0)


@pytest.mark.parametrize(
    "make", [lambda: Flip(1.5), lambda: Resize(0), lambda: RandomCrop(0), lambda: CenterCrop(8, visible=1)]
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()
