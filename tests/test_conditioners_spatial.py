"""Maps that are joined to the state by channels."""

import pytest
import torch

from ldmkit.conditioners import LowRes, MaskedImage, SemanticMap, masked_image


def labels(*shape):
    return torch.randint(5, shape)


def one_hot(segmentation):
    return torch.nn.functional.one_hot(segmentation, 5).movedim(-1, 1).float()


def test_labels_and_their_one_hot_map_give_the_same():
    conditioner, segmentation = SemanticMap(5, 2, 2), labels(2, 8, 12)
    torch.testing.assert_close(
        conditioner({"segmentation": segmentation}).concat,
        conditioner({"segmentation": one_hot(segmentation)}).concat,
    )


def test_a_stage_replaces_four_cells_by_their_mean():
    conditioner, segmentation = SemanticMap(5, 5, 2), labels(2, 8, 12)
    conditioner.channel_mapper.weight.data = torch.eye(5)[:, :, None, None]
    expected = torch.nn.functional.avg_pool2d(one_hot(segmentation), 4)
    torch.testing.assert_close(conditioner({"segmentation": segmentation}).concat, expected)


def test_without_stages_the_size_stays():
    assert SemanticMap(5, 2, 0)({"segmentation": labels(2, 7, 5)}).concat.shape == (2, 2, 7, 5)


def test_the_factor_of_a_semantic_map_is_readable_for_composition():
    assert [SemanticMap(5, 2, stages).factor for stages in range(4)] == [1, 2, 4, 8]


def test_the_null_of_a_semantic_map_is_zeros_of_the_latents_size():
    null = SemanticMap(5, 2, 2).null({"segmentation": labels(2, 8, 12)}).concat
    assert torch.equal(null, torch.zeros(2, 2, 2, 3))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (torch.full((1, 8, 8), 5), r"\[0, 4\].*\[5, 5\]"),
        (torch.full((1, 8, 8), -1), "-1"),
        (torch.zeros(1, 8, 8), "integers"),
        (torch.zeros(8, 8, dtype=torch.int64), r"\(B, H, W\)"),
        (torch.zeros(1, 4, 8, 8), r"\(B, 5, H, W\), got \(1, 4, 8, 8\)"),
        (torch.zeros(1, 5, 8, 8, dtype=torch.int64), "floating point"),
        (torch.zeros(1, 6, 8, dtype=torch.int64), r"multiples of 4, got \(6, 8\)"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(segmentation, message):
    conditioner = SemanticMap(5, 2, 2)
    for call in (conditioner, conditioner.null):
        with pytest.raises(ValueError, match=message):
            call({"segmentation": segmentation})


def test_a_low_resolution_image_passes_unchanged():
    image = torch.rand(2, 3, 4, 6) * 2 - 1
    assert LowRes()({"low_res": image}).concat is image
    assert torch.equal(LowRes().null({"low_res": image}).concat, torch.zeros(2, 3, 4, 6))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 1, 4, 6), r"\(B, 3, h, w\)"),
        (torch.zeros(3, 4, 6), r"got \(3, 4, 6\)"),
        (torch.zeros(2, 3, 4, 6, dtype=torch.uint8), "floating point, got torch.uint8"),
    ],
)
def test_a_low_resolution_image_of_another_form_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        LowRes()({"low_res": image})


def half_masked():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    return {"masked_image_latent": torch.full((1, 3, 2, 2), 0.5), "mask": mask}


def test_inpainting_of_latent_diffusion_puts_the_mask_last_in_minus_one_and_one():
    concat = MaskedImage(3)(half_masked()).concat
    assert torch.equal(concat[:, :3], torch.full((1, 3, 2, 2), 0.5))
    assert concat[0, 3].tolist() == [[1, -1], [1, -1]]


def test_inpainting_of_stable_diffusion_puts_the_mask_first_in_zero_and_one():
    concat = MaskedImage(3, order=("mask", "latent"), mask_range=(0, 1), hole=0)(half_masked()).concat
    assert torch.equal(concat[:, 1:], torch.full((1, 3, 2, 2), 0.5))
    assert concat[0, 0].tolist() == [[1, 0], [1, 0]]


def test_the_null_of_a_masked_image_knows_nothing_and_asks_for_everything():
    null = MaskedImage(3).null(half_masked()).concat
    assert torch.equal(null[:, :3], torch.zeros(1, 3, 2, 2))
    assert torch.equal(null[:, 3:], torch.ones(1, 1, 2, 2))


def test_a_mask_is_reduced_to_its_nearest_value_and_never_averaged():
    batch = half_masked()
    batch["mask"] = torch.eye(8)[None, None]
    values = MaskedImage(3, mask_range=(0, 1))(batch).concat[:, 3].unique()
    assert set(values.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.full((1, 1, 8, 8), -1.0)}, r"\[0, 1\], 1 = regenerate.*-1"),
        ({"mask": torch.full((1, 1, 8, 8), 255.0)}, "255"),
        ({"mask": torch.full((1, 1, 8, 8), float("nan"))}, "nan"),
        ({"mask": torch.zeros(1, 8, 8)}, r"\(1, 1, H, W\)"),
        ({"mask": torch.zeros(2, 1, 8, 8)}, r"\(1, 1, H, W\), got \(2, 1, 8, 8\)"),
        ({"mask": torch.zeros(1, 1, 8, 9)}, r"multiple of the latent's \(2, 2\), got \(8, 9\)"),
        ({"mask": torch.zeros(1, 1, 8, 8, dtype=torch.bool)}, "floating point"),
        ({"masked_image_latent": torch.zeros(1, 4, 2, 2)}, r"\(B, 3, h, w\)"),
    ],
)
def test_a_mask_or_latent_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MaskedImage(3)({**half_masked(), **change})


@pytest.mark.parametrize("order", [("latent",), ("mask", "image"), ("latent", "mask", "mask")])
def test_an_order_that_is_none_is_refused(order):
    with pytest.raises(ValueError, match="some order"):
        MaskedImage(3, order=order)


@pytest.mark.parametrize("hole", [-1.0, 0.0])
def test_a_masked_image_keeps_what_is_known_and_fills_the_hole(hole):
    image, mask = torch.rand(2, 3, 4, 4) * 2 - 1, torch.zeros(2, 1, 4, 4)
    mask[:, :, 1:3] = 1
    filled = masked_image(image, mask, hole)
    assert torch.equal(filled[:, :, 0], image[:, :, 0])
    assert torch.equal(filled[:, :, 1:3], torch.full((2, 3, 2, 4), hole))


@pytest.mark.parametrize("make", [lambda: SemanticMap(0, 1, 1), lambda: LowRes(0), lambda: MaskedImage(0)])
def test_sizes_below_one_are_refused(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()


def test_the_names_of_a_semantic_map_are_one_per_class():
    with pytest.raises(ValueError, match="5 classes and was given 1 names"):
        SemanticMap(5, 2, 2, names=["sky"])
