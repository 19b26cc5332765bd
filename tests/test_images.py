"""Reading images, masks and label maps as people have them, and refusing what is none."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.images import open_image, read_images, read_label_maps, read_masks, to_pil

MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "F",
]


def photo(height=5, width=4, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def halves(mode):
    """White above black, in any mode."""
    image = Image.new("L", (4, 6), 0)
    image.paste(255, (0, 0, 4, 3))
    if mode in ("I", "I;16"):
        return Image.fromarray(np.asarray(image).astype(np.uint16) * 257).convert(mode)
    if mode == "F":
        return Image.fromarray(np.asarray(image).astype(np.float32) / 255)
    if mode == "LAB":
        return Image.merge("LAB", [image, Image.new("L", (4, 6), 128), Image.new("L", (4, 6), 128)])
    steps = {"La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "HSV": ["RGB", "HSV"], "PA": ["RGBA", "P", "PA"]}
    for step in steps.get(mode, ["RGB", mode]):
        image = image.convert(step)
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_read(mode, channels):
    picture = halves(mode)
    assert picture.mode == mode
    x = read_images(picture, channels=channels)
    assert x.shape == (1, channels, 6, 4)
    assert (x[:, :, :3] > 0.99).all()
    assert (x[:, :, 3:] < 0.01).all()


def test_every_way_to_hold_a_photo_says_the_same(tmp_path):
    picture = photo()
    picture.save(tmp_path / "photo.png")
    array, tensor = np.asarray(picture), torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    expected = tensor[None].float() / 255
    for given in (
        picture,
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        array,
        array[None],
        array.astype(np.float64) / 255,
        array[:, ::-1][:, ::-1],
        tensor,
        tensor[None],
        tensor.double() / 255,
        [picture],
        (array,),
        array.astype(np.uint16) * 257,
        (array.astype(np.uint16) * 257).astype(">u2"),
    ):
        assert torch.equal(read_images(given), expected), given


def test_a_picture_survives_reading_and_writing_to_the_bit():
    for picture in (photo(), photo().convert("L")):
        (back,) = to_pil(read_images(picture, channels=len(picture.getbands())))
        assert back.mode == picture.mode
        assert back.tobytes() == picture.tobytes()
    transparent = photo().convert("RGBA")
    assert to_pil(read_images(transparent, channels=4))[0].tobytes() == transparent.tobytes()


def test_values_are_clamped_and_rounded_to_the_nearest_of_256():
    x = torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 0.5, 1.0, 1.5]).view(1, 1, 1, 7)
    assert np.asarray(to_pil(x)[0]).tolist() == [[0, 0, 0, 1, 128, 255, 255]]
    ramp = torch.arange(256).view(1, 1, 16, 16)
    assert torch.equal(read_images(to_pil(ramp / 255), channels=1) * 255, ramp.float())


def test_what_arithmetic_leaves_outside_is_clamped():
    x = read_images(torch.tensor([-1e-6, 1 + 1e-6]).view(1, 1, 2), channels=1)
    assert x.flatten().tolist() == [0, 1]


def test_a_list_becomes_a_batch_in_its_order():
    pictures = [photo(seed=0), np.asarray(photo(seed=1)), torch.from_numpy(np.array(photo(seed=2))).permute(2, 0, 1)]
    batch = read_images(pictures)
    assert torch.equal(batch, torch.cat([read_images(one) for one in pictures]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation, tmp_path):
    picture = photo(4, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    turned = {
        1: lambda x: x,
        2: lambda x: x.flip(3),
        3: lambda x: x.rot90(2, (2, 3)),
        4: lambda x: x.flip(2),
        5: lambda x: x.transpose(2, 3),
        6: lambda x: x.rot90(-1, (2, 3)),
        7: lambda x: x.rot90(2, (2, 3)).transpose(2, 3),
        8: lambda x: x.rot90(1, (2, 3)),
    }
    assert torch.equal(read_images(tmp_path / "turned.png"), turned[orientation](read_images(picture)))


@pytest.mark.parametrize("source", ["RGBA", "array", "P", "LA"])
def test_transparency_is_laid_on_the_stated_colour(source):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    given = np.asarray(picture) if source == "array" else picture.convert(source)
    assert read_images(given)[0, :, 0].T.tolist() == [[1, 1, 1], [0, 0, 0]]
    grey = source == "LA"
    colour = (0.25, 0.25, 0.25) if grey else (0.25, 0.5, 1.0)
    torch.testing.assert_close(
        read_images(given, background=colour)[0, :, 0].T, torch.tensor([colour, (0.0, 0.0, 0.0)])
    )


def test_half_transparency_is_half_of_each():
    picture = Image.new("RGBA", (1, 1), (255, 0, 0, 51))
    torch.testing.assert_close(read_images(picture).flatten(), torch.tensor([1.0, 0.8, 0.8]))


def test_sixteen_bits_keep_their_precision():
    ramp = np.array([[0, 1, 32768, 65535]], dtype=np.uint16)
    expected = torch.from_numpy(ramp.astype(np.float32)) / 65535
    for given in (Image.fromarray(ramp), Image.fromarray(ramp).convert("I"), ramp):
        assert torch.equal(read_images(given, channels=1)[0, 0], expected)


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("L", (3, 2), value) for value in (255, 0, 0)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_images(tmp_path / "moving.gif").min() == 1


def png(width, height):
    """A PNG that only says how large it is."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"")
    written = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def broken(tmp_path):
    photo(64, 64).save(tmp_path / "whole.jpg")
    photo(64, 64).save(tmp_path / "whole.png")
    files = {
        "half.jpg": (tmp_path / "whole.jpg").read_bytes()[:1500],
        "half.png": (tmp_path / "whole.png").read_bytes()[:3000],
        "empty.png": b"",
        "text.png": b"not a picture",
        "large.png": png(9000, 9000),
        "huge.png": png(60000, 60000),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return [*files, ".", "missing.png"]


def test_files_that_are_no_pictures_are_refused_by_name(tmp_path):
    for name in broken(tmp_path):
        path = tmp_path / name
        with pytest.raises(ValueError, match=r"mask_image\[1\].*" + path.name.replace(".", r"\.")):
            read_masks([np.ones((2, 2)), path])
        with pytest.raises(ValueError, match=r"cannot be|no file|the limit is"):
            open_image(path)


def test_size_is_seen_before_decoding(tmp_path):
    (tmp_path / "large.png").write_bytes(png(30, 20))
    with pytest.raises(ValueError, match=r"30 x 20 pixels, the limit is 1 to 599"):
        read_images(tmp_path / "large.png", max_pixels=599)
    with pytest.raises(ValueError, match=r"4 x 5 pixels, the limit is 1 to 19"):
        read_images(photo(), max_pixels=19)


def test_an_open_picture_whose_file_is_damaged_is_refused(tmp_path):
    broken(tmp_path)
    with Image.open(tmp_path / "half.jpg") as picture, pytest.raises(ValueError, match=r"image\[0\] cannot be decoded"):
        read_images([picture])


BAD_IMAGES = [
    (None, TypeError, "image must be"),
    (object(), TypeError, "image must be a PIL image, a path, a numpy array, a tensor or a list"),
    (3, TypeError, "got int"),
    ([[0.0, 1.0]], TypeError, r"image\[0\]"),
    (np.array(["a"]), TypeError, "array of <U1"),
    ("https://example.org/a.png", ValueError, "downloads nothing"),
    ([], ValueError, "image is an empty list"),
    (torch.zeros(0, 3, 2, 2), ValueError, "no image"),
    (torch.zeros(3, 0, 2), ValueError, "no image"),
    (torch.zeros(2), ValueError, "1 dimensions"),
    (torch.zeros(1, 1, 3, 2, 2), ValueError, "5 dimensions"),
    (torch.zeros(3, 2, 2, dtype=torch.int64), ValueError, "torch.int64"),
    (torch.zeros(3, 2, 2, dtype=torch.complex64), ValueError, "complex"),
    (torch.full((3, 2, 2), 1.5), ValueError, r"must lie in \[0, 1\], got values in \[1.5, 1.5\]"),
    (torch.full((3, 2, 2), -1.0), ValueError, r"x / 2 \+ 0.5"),
    (np.full((2, 2, 3), 255.0), ValueError, "divide by"),
    (torch.tensor([[[0.5, float("nan")]]]), ValueError, "not finite"),
    (torch.tensor([[[0.5, float("inf")]]]), ValueError, "not finite"),
    (np.zeros((3, 8, 8)), ValueError, r"8 channels.*arrays are \(H, W, C\)"),
    (torch.zeros(8, 8, 3), ValueError, r"8 channels.*tensors \(C, H, W\)"),
    ([torch.zeros(3, 2, 2), torch.zeros(3, 2, 3)], ValueError, r"image\[1\] is 3 x 2 x 3 and image\[0\] 3 x 2 x 2"),
    ([torch.zeros(3, 2, 2), torch.zeros(2, 3, 2, 2)], ValueError, r"image\[1\] is a batch of 2"),
    ([photo(), torch.full((3, 5, 4), 2.0)], ValueError, r"image\[1\] must lie"),
    (Image.fromarray(np.full((2, 2), 2.0, np.float32)), ValueError, r"\[0, 1\]"),
    (Image.fromarray(np.full((2, 2), 70000, np.int32)), ValueError, "65535"),
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_IMAGES, ids=[message for _, _, message in BAD_IMAGES])
def test_what_is_no_image_is_refused_by_name(value, error, message):
    with pytest.raises(error, match=message):
        read_images(value)


def test_every_way_to_hold_a_mask_says_the_same():
    marked = np.zeros((6, 4), dtype=bool)
    marked[:3] = True
    bits = marked.astype(np.uint8)
    expected = torch.from_numpy(marked)[None, None].float()
    for given in (
        marked,
        bits,
        bits * 255,
        bits.astype(np.int64),
        bits.astype(np.uint16),
        bits.astype(np.uint16) * 65535,
        bits.astype(">u4"),
        marked.astype(np.float32),
        marked[..., None],
        marked[None],
        marked[None, ..., None],
        torch.from_numpy(marked),
        torch.from_numpy(bits)[None],
        torch.from_numpy(marked)[None, None],
        Image.fromarray(bits),
        [Image.fromarray(bits * 255).convert("P")],
        *(halves(mode) for mode in MODES),
    ):
        torch.testing.assert_close(read_masks(given), expected, atol=0.01, rtol=0)


def test_soft_masks_stay_soft_and_batches_batches():
    soft = torch.rand(3, 4, 5)
    assert torch.equal(read_masks(soft), soft[:, None])
    assert torch.equal(read_masks(list(soft.numpy())), soft[:, None])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Image.new("RGBA", (2, 2), (0, 0, 0, 9)), r"partly transparent.*getchannel"),
        (Image.new("RGB", (2, 2), (200, 0, 0)).convert("P"), "palette of colours"),
        (np.full((2, 2), 2.0), r"mask_image must lie in \[0, 1\]"),
        (np.full((2, 2), -1), "torch.int64"),
        (np.full((2, 2), float("nan")), "not finite"),
        (np.zeros((2, 2, 2, 2)), r"a mask, \(H, W\) or \(B, H, W\)"),
        (np.zeros(2), "1 dimensions"),
    ],
)
def test_what_is_no_mask_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_masks(value)


LABELS = np.arange(24).reshape(6, 4) % 5


def test_every_way_to_hold_labels_says_the_same(tmp_path):
    palette_picture = Image.fromarray(LABELS.astype(np.uint8), "L").convert("P")
    palette_picture.putpalette([9, 200, 30, 250, 0, 3, 0, 0, 0, 7, 7, 7, 255, 255, 255])
    palette_picture.save(tmp_path / "labels.png")
    for given in (
        LABELS,
        LABELS.astype(np.uint8),
        LABELS.astype(np.uint16),
        LABELS.astype(np.uint32),
        torch.from_numpy(LABELS),
        LABELS[None],
        LABELS[..., None],
        [LABELS],
        Image.fromarray(LABELS.astype(np.uint8)),
        Image.fromarray(LABELS.astype(np.uint16)),
        palette_picture,
        tmp_path / "labels.png",
    ):
        read = read_label_maps(given, classes=5)
        assert read.dtype == torch.int64
        assert torch.equal(read, torch.from_numpy(LABELS)[None])


def test_one_hot_maps_keep_a_channel_per_class():
    one_hot = np.eye(5, dtype=np.float32)[LABELS]
    expected = torch.from_numpy(one_hot).permute(2, 0, 1)[None]
    for given in (
        one_hot,
        one_hot[None],
        one_hot.astype(bool),
        one_hot[None].astype(np.uint8),
        expected,
        expected[0],
        expected.long().bool(),
    ):
        assert torch.equal(read_label_maps(given, classes=5), expected)
    soft = torch.rand(2, 5, 6, 4).softmax(1)
    assert torch.equal(read_label_maps(soft, classes=5), soft)


def test_a_picture_in_colours_is_read_by_a_palette():
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    picture = Image.fromarray(np.array(palette, dtype=np.uint8)[LABELS])
    assert torch.equal(read_label_maps(picture, palette=palette), torch.from_numpy(LABELS)[None])
    with pytest.raises(ValueError, match=r"colour \(9, 9, 9\), not in the palette"):
        read_label_maps(picture, palette=palette[:4])
    with pytest.raises(ValueError, match="mode 'RGB', whose colours are no labels"):
        read_label_maps(picture)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (LABELS + 1, r"labels in \[1, 5\]; the model's classes are 0 to 4"),
        (LABELS - 1, r"labels in \[-1, 3\]"),
        ([LABELS, LABELS + 1], r"segmentation\[1\]"),
        (LABELS.astype(np.float32), "labels, which are integers"),
        (np.zeros((6, 4, 3)), "3 channels, the model 5 classes"),
        (np.full((6, 4, 5), 2.0), r"must lie in \[0, 1\]"),
        ([LABELS, np.eye(5)[LABELS]], r"segmentation\[1\] is 5 x 6 x 4 and segmentation\[0\] 6 x 4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_label_maps(value, classes=5)


def test_pictures_are_not_made_of_what_is_not_finite():
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"images \[1\]"):
        to_pil(x)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 1, 1\)"):
        to_pil(torch.zeros(2, 5, 1, 1))


def test_reading_leaves_the_picture_alone():
    picture = photo()
    exif = picture.getexif()
    exif[0x0112] = 6
    before = picture.tobytes(), picture.size
    read_images(picture)
    assert (picture.tobytes(), picture.size) == before
