import pytest
import torch

from ldmkit.conditioners.layout_tokens import FULL, Box, LayoutTokenizer, Point, Vocabulary, as_object
from ldmkit.data.augment import CenterCrop, Chain, Flip, RandomCrop, RandomSquare, Resize, ShuffleObjects, TellCrop

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
        (Flip(), record(boxes=[(7, 4, 3, 12, 9)]), r"boxes\[0\] of a record needs coordinates in \[0, 1\]"),
        (CenterCrop(8), record(points=[(7, 8, 6)]), r"points\[0\] of a record"),
        (RandomSquare(8), record(crop=(0, 0, 20, 12)), "crop of a record"),
    ],
)
def test_what_cannot_follow_is_refused(step, given, message):
    with pytest.raises(ValueError, match=message):
        step(given, 0)


def test_pictures_that_were_not_read_are_refused():
    with pytest.raises(TypeError, match="Records reads paths"):
        Flip()({"target": "a.png"}, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flip(1.5),
        lambda: Resize(0),
        lambda: RandomCrop(0),
        lambda: CenterCrop(8, visible=1),
        lambda: RandomSquare(8, least=2),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()


TOLD = {
    "flip": Chain((TellCrop(), Flip(1.0))),
    "random": Chain((TellCrop(), RandomCrop((8, 10)))),
    "chain": Chain((TellCrop(), RandomCrop((10, 16)), Flip(), CenterCrop((8, 10)), Flip())),
    "again": Chain((TellCrop(), CenterCrop((10, 18)), TellCrop(), Flip(1.0))),
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", TOLD)
def test_boxes_seen_through_the_told_crop_lie_on_the_picture(name, seed):
    shown = TOLD[name](record(), seed)
    boxes = [as_object(Box, item) for item in shown["boxes"]]
    seen = [box.within(shown["crop"]) for box in boxes]
    assert torch.equal(shown["target"][0], drawn({**shown, "boxes": [box for box in seen if box is not None]}))


def test_without_a_told_crop_nothing_tells_it():
    assert "crop" not in Chain((RandomCrop(8), RandomSquare(4), Flip(1.0)))(record(), 0)


def test_a_told_crop_leaves_the_objects_those_of_the_whole_picture():
    for seed in range(20):
        shown = Chain((TellCrop(), RandomSquare(5), CenterCrop(3)))(record(), seed)
        assert shown["boxes"] == record()["boxes"]
        assert shown["points"] == record()["points"]
    assert Resize(24)(TellCrop()(record(), 0), 0)["crop"] == FULL


def test_the_worked_example_of_the_original_comes_out_of_a_crop_and_a_flip():
    tokenizer = LayoutTokenizer(Box, Vocabulary(340, flags=("group", "occluded", "depiction", "inside")))
    given = {"target": torch.zeros(3, 10, 20), "boxes": [(5, 0.1, 0.2, 0.4, 0.6, ("group", "inside"))]}
    crops = (Chain((TellCrop(), RandomCrop(10)))(given, seed) for seed in range(200))
    left = next(shown for shown in crops if shown["crop"][0] == 0)
    tokens = tokenizer.encode([Box(*item) for item in left["boxes"]], left["crop"])
    assert tokens == [3065, 1629, 4806, *[8191] * 87, 0, 8054]
    both = Flip(1.0)(left, 0)
    mirrored = tokenizer.encode(both["boxes"], both["crop"])
    assert mirrored == tokenizer.encode([Box(*item) for item in left["boxes"]], left["crop"], flip=True)
    assert both["crop"] == (0.5, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(("shape", "least"), [((40, 60), 0.0), ((60, 40), 0.9), ((40, 60), 1.0), ((12, 9), 0.0)])
def test_a_square_is_a_part_of_the_picture_in_one_size(shape, least):
    step, shorter = Chain((TellCrop(), RandomSquare(16, least))), min(shape)
    sides, corners = set(), set()
    for seed in range(200):
        shown = step({"target": torch.zeros(3, *shape)}, seed)
        x0, y0, x1, y1 = shown["crop"]
        assert shown["target"].shape == (3, 16, 16)
        assert 0 <= x0 < x1 <= 1 + 1e-9
        assert (x1 - x0) * shape[1] == pytest.approx((y1 - y0) * shape[0])
        sides.add(round((x1 - x0) * shape[1]))
        corners.add((round(x0 * shape[1]), round(y0 * shape[0])))
    first = min(max(16, int(least * shorter)), shorter)
    assert sides == set(range(first, shorter + 1))
    assert len({x for x, _ in corners}) > 1 or first == shorter >= shape[1]


def test_every_order_of_the_objects_occurs_and_none_is_lost():
    boxes = [(i, 0.1, 0.1, 0.5, 0.5) for i in range(3)]
    orders = {tuple(box[0] for box in ShuffleObjects()({"boxes": boxes}, seed)["boxes"]) for seed in range(60)}
    assert len(orders) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert [box[0] for box in boxes] == [0, 1, 2]
