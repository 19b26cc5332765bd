"""A part of an image made anew, inside and beyond its border, by models that read masks and by those that do not."""

import numpy as np
import pytest
import torch
from PIL import Image

import ldmkit
import ldmkit.images
from ldmkit.conditioners import ClassLabel, MaskedImage
from ldmkit.conditioning import Conditioning
from ldmkit.errors import CompositionError
from ldmkit.guidance import CFG, keep_known
from ldmkit.tasks.class_conditional import ClassConditional
from ldmkit.tasks.inpainting import Inpainting
from ldmkit.tasks.outpainting import Outpainting
from ldmkit.tasks.unconditional import Unconditional

LDM = {"channels": 3}
SD = {"channels": 3, "order": ("mask", "latent"), "mask_range": (0.0, 1.0), "hole": 0.0}
TINY = {"channels": 3, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "num_heads": 2}
STAGE = {"channels": 3, "base_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1}


def composed(conditioner=None, **slots):
    """A model whose sides are multiples of 4."""
    attention = (1,) if "context_dim" in slots else ()
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "kl", **STAGE),
        backbone=ldmkit.build("backbone", "unet", **TINY, attention_resolutions=attention, **slots),
        process=ldmkit.build("process", "vp"),
        prediction="v",
        conditioner=conditioner,
    ).eval()


@pytest.fixture(scope="module")
def ldm():
    return composed({"masked": MaskedImage(**LDM)}, concat_channels=4)


@pytest.fixture(scope="module")
def plain():
    return composed()


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def half(height, width):
    """White on the right."""
    mask = np.zeros((height, width), dtype=bool)
    mask[:, width // 2 :] = True
    return mask


def framed(task, model, **inputs):
    task = task.fitted(model)
    frame = task.frame(inputs, model)
    return task, frame, task.prepare(frame.inputs)


@pytest.mark.parametrize(("options", "hole"), [(LDM, -1.0), (SD, 0.0)])
def test_the_hole_is_filled_as_the_models_conditioner_was_trained(options, hole):
    model = composed({"masked": MaskedImage(**options)}, concat_channels=4)
    image, mask = picture(8, 12), half(8, 12)
    task, frame, batch = framed(Inpainting(), model, image=image, mask_image=mask)
    assert (task.hole, task.fills, frame.known, frame.size) == (hole, ("masked_image", "mask"), None, (8, 12))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(batch["masked_image"][0, :, :, :6], pixels[:, :, :6])
    assert (batch["masked_image"][0, :, :, 6:] == hole).all()
    assert torch.equal(batch["mask"][0, 0], torch.from_numpy(mask).float())


def test_training_and_sampling_read_one_record_alike(ldm):
    record = {"image": torch.rand(2, 3, 8, 8), "mask_image": torch.rand(2, 1, 8, 8)}
    task, frame, batch = framed(Inpainting(), ldm, **record)
    trained = task.prepare(record)
    assert all(torch.equal(trained[key], batch[key]) for key in task.fills)
    ldm.loss({"image": record["image"] * 2 - 1, **trained}, seeds=[0, 1])
    assert ldm.sample(batch, size=frame.size, levels=1).shape == (2, 3, 4, 4)


def test_known_pixels_come_back_to_the_bit(ldm):
    image, mask = picture(7, 10), half(7, 10)
    _, frame, _ = framed(Inpainting(), ldm, image=image, mask_image=mask)
    made = torch.rand(1, 3, *frame.size)
    (result,) = ldmkit.images.to_pil(frame.finish(made))
    assert np.array_equal(np.asarray(result)[:, :5], np.asarray(image)[:, :5])
    assert torch.equal(frame.finish(made)[:, :, :, 5:], made[:, :, :7, 5:10])


def test_without_paste_the_result_is_what_was_decoded(ldm):
    _, frame, _ = framed(Inpainting(), ldm, image=picture(7, 10), mask_image=half(7, 10), paste=False)
    made = torch.rand(1, 3, *frame.size)
    assert torch.equal(frame.finish(made), made[:, :, :7, :10])


@pytest.mark.parametrize("fixture", ["ldm", "plain"])
def test_a_mask_of_zeros_returns_the_image(fixture, request):
    image = picture(8, 8)
    model = request.getfixturevalue(fixture)
    _, frame, _ = framed(Inpainting(), model, image=image, mask_image=np.zeros((8, 8)))
    (result,) = ldmkit.images.to_pil(frame.finish(torch.rand(1, 3, 8, 8)))
    assert result.tobytes() == image.tobytes()


def test_a_mask_of_ones_is_plain_sampling(plain):
    _, frame, batch = framed(Inpainting(), plain, image=picture(8, 8), mask_image=np.ones((8, 8)))
    known = plain.encode(frame.known)
    mask = torch.nn.functional.adaptive_max_pool2d(frame.mask, known.shape[-2:])
    z = plain.sample(batch, size=frame.size, levels=3, wrap=lambda denoise: keep_known(denoise, known, mask))
    assert torch.equal(z, plain.sample(size=(8, 8), levels=3))
    made = plain.decode(z) / 2 + 0.5
    assert torch.equal(frame.finish(made), made)


def test_soft_masks_blend_and_are_told_as_hard_ones(ldm):
    image, mask = torch.rand(1, 3, 8, 8), torch.full((8, 8), 0.25)
    mask[:, 4:] = 0.5
    _, frame, batch = framed(Inpainting(), ldm, image=image, mask_image=mask)
    assert torch.equal(batch["mask"][0, 0], (mask == 0.5).float())
    made = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(frame.finish(made), (1 - mask) * image + mask * made)


def test_a_model_without_masks_is_told_what_to_keep(plain):
    image, mask = torch.rand(1, 3, 7, 10), torch.from_numpy(half(7, 10))
    task, frame, batch = framed(Inpainting(), plain, image=image, mask_image=mask)
    assert (task.hole, batch) == (None, {})
    assert frame.known.shape == (1, 3, 8, 12)
    torch.testing.assert_close(frame.known[:, :, :7, :10], image * 2 - 1)
    assert torch.equal(frame.mask[0, 0, :7, :10], mask.float())
    assert frame.mask[0, 0, 7:, 5:].min() == 1
    assert frame.mask[0, 0, 7:, :5].max() == 0


def test_several_images_of_one_keep_their_own_pixels(ldm):
    image, mask = torch.rand(2, 3, 8, 8), torch.from_numpy(half(8, 8))
    _, frame, _ = framed(Inpainting(), ldm, image=image, mask_image=mask)
    made = frame.finish(torch.rand(6, 3, 8, 8))
    for i in range(6):
        assert torch.equal(made[i, :, :, :4], image[i // 3, :, :, :4])


def test_one_image_serves_several_masks_and_labels():
    model = composed({"masked": MaskedImage(**LDM), "class": ClassLabel(3, 8)}, concat_channels=4, context_dim=8)
    image, masks = torch.rand(3, 8, 8), torch.rand(2, 8, 8)
    task, frame, batch = framed(Inpainting(), model, image=image, mask_image=masks, label=[0, 2])
    assert task.condition == ClassConditional(3)
    assert task.takes == ("image", "mask_image", "paste", "label")
    assert {key: len(value) for key, value in batch.items()} == {"masked_image": 2, "mask": 2, "label": 2}
    assert torch.equal(frame.finish(torch.rand(2, 3, 8, 8)) == image, (masks == 0)[:, None].expand(-1, 3, -1, -1))
    _, frame, batch = framed(Inpainting(), model, image=image, mask_image=masks[0], label=[0, 1, 2])
    assert batch["masked_image"].shape == (3, 3, 8, 8)
    with pytest.raises(ValueError, match="differ in number"):
        framed(Inpainting(), model, image=image, mask_image=masks, label=[0, 1, 2])


class Prompts(torch.nn.Module):
    """A conditioner of text: how long each prompt is."""

    reads = ("prompt",)
    provides = {"context": 8}  # noqa: RUF012

    def forward(self, batch):
        return Conditioning(context=torch.tensor([[[float(len(text))] * 8] for text in batch["prompt"]]))

    def null(self, batch):
        return self({"prompt": [""] * len(batch["prompt"])})


def test_the_negative_prompt_is_told_of_the_same_hole():
    model = composed({"masked": MaskedImage(**SD), "text": Prompts()}, concat_channels=4, context_dim=8)
    inputs = {"image": picture(7, 10), "mask_image": half(7, 10), "prompt": ["a", "b"], "negative_prompt": "c"}
    task, frame, batch = framed(Inpainting(), model, **inputs)
    negative = task.prepare(frame.negative)
    assert (batch["prompt"], negative["prompt"]) == (["a", "b"], ["c", "c"])
    assert all(torch.equal(negative[key], batch[key]) for key in ("masked_image", "mask"))
    z = model.sample(batch, size=frame.size, levels=1, negative=negative, guidance=CFG(2.0))
    assert z.shape == (2, 3, 4, 6)


class Silent(torch.nn.Module):
    """A conditioner of masked images that does not say what fills the hole."""

    reads = ("masked_image_latent",)
    provides = {"concat": 3}  # noqa: RUF012

    def forward(self, batch):
        return Conditioning(concat=batch["masked_image_latent"])

    null = forward


def test_a_conditioner_must_say_what_fills_the_hole():
    with pytest.raises(CompositionError, match=r"Silent reads a masked image.*'hole'"):
        Inpainting().fitted(composed({"masked": Silent()}, concat_channels=3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": None}, ValueError, "needs image="),
        ({"mask_image": None}, ValueError, "needs mask_image="),
        ({"mask_image": np.zeros((8, 9))}, ValueError, r"mask_image is 8 x 9 .* and image 8 x 8: resize the mask"),
        ({"mask_image": np.full((8, 8), -0.5)}, ValueError, r"mask_image must lie in \[0, 1\]"),
        ({"mask_image": np.zeros((3, 8, 8))}, ValueError, "2 of 'image', 3 of 'mask_image'"),
        ({"image": torch.rand(2, 3, 8, 8) + 1}, ValueError, r"image must lie"),
        ({"paste": 1}, TypeError, "paste must be True or False"),
    ],
)
@pytest.mark.parametrize("fixture", ["ldm", "plain"])
def test_what_cannot_be_inpainted_is_refused(fixture, change, error, message, request):
    inputs = {"image": torch.rand(2, 3, 8, 8), "mask_image": half(8, 8), **change}
    with pytest.raises(error, match=message):
        framed(Inpainting(), request.getfixturevalue(fixture), **inputs)


def test_outpainting_is_inpainting_of_the_larger_image(ldm):
    image = picture(6, 5)
    task, frame, batch = framed(Outpainting(), ldm, image=image, left=2, bottom=1, expand=0)
    assert (task.hole, frame.size) == (-1.0, (8, 8))
    mask = torch.ones(7, 7)
    mask[:6, 2:] = 0
    assert torch.equal(batch["mask"][0, 0, :7, :7], mask)
    made = torch.rand(1, 3, 8, 8)
    (result,) = ldmkit.images.to_pil(frame.finish(made))
    assert result.size == (7, 7)
    assert np.array_equal(np.asarray(result)[:6, 2:], np.asarray(image))
    assert torch.equal(frame.finish(made)[:, :, 6], made[:, :, 6, :7])


def test_expand_adds_to_every_side_that_is_not_named(plain):
    _, frame, _ = framed(Outpainting(), plain, image=torch.rand(3, 4, 4), expand=4, top=0)
    assert frame.size == (8, 12)
    assert torch.equal(frame.mask[0, 0] == 0, torch.nn.functional.pad(torch.ones(4, 4), (4, 4, 0, 4)) == 1)


def test_a_record_with_a_mask_is_outpainted_as_it_is():
    record = {"image": torch.rand(1, 3, 4, 4), "mask_image": torch.from_numpy(half(4, 4))}
    ours, theirs = Outpainting(-1.0).prepare(record), Inpainting(-1.0).prepare(record)
    assert all(torch.equal(ours[key], theirs[key]) for key in ("masked_image", "mask"))


@pytest.mark.parametrize(
    ("sides", "error", "message"),
    [
        ({}, ValueError, "needs pixels to add: left=, top=, right=, bottom= or expand="),
        ({"left": 0}, ValueError, "needs pixels"),
        ({"left": -1}, ValueError, "left must be at least 0"),
        ({"top": 0.5}, TypeError, "top must be a whole number"),
        ({"left": 1, "image": None}, ValueError, "needs image="),
    ],
)
def test_what_cannot_be_continued_is_refused(sides, error, message, plain):
    with pytest.raises(error, match=message):
        framed(Outpainting(), plain, **{"image": torch.rand(3, 4, 4), **sides})


def test_outpainting_takes_no_mask_from_a_caller():
    task = Outpainting(condition=Unconditional())
    assert task.takes == ("image", "left", "top", "right", "bottom", "expand", "paste")
