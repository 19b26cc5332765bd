"""Images, masks and label maps as people have them, to tensors in [0, 1], and back.

    picture, path, array, tensor, list of them  ->  images (B, C, H, W), masks (B, 1, H, W), labels (B, H, W)

A numpy array is ``(H, W)``, ``(H, W, C)`` or ``(B, H, W, C)``, a tensor ``(H, W)``, ``(C, H, W)`` or ``(B, C, H, W)``.
Floating point lies in [0, 1]; ``uint8`` means [0, 255] and ``uint16`` [0, 65535]. A picture is turned as its EXIF data
say, its transparency laid on a background, and of an animation the first frame is read (of an open one, the frame it
stands at). What is damaged, out of range or not finite is refused with a ValueError that names the keyword and the
item. Nothing here is resized, and nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
Colour = tuple[float, float, float]
WHITE: Colour = (1.0, 1.0, 1.0)

SLACK = 1e-5  # what arithmetic in float32 leaves outside [0, 1]
LUMA = (0.299, 0.587, 0.114)
SCALES: dict[torch.dtype, int] = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}
GREYS = {"1": "L", "L": "L", "LA": "LA", "La": "LA"}

Array = np.ndarray[Any, np.dtype[Any]]


def read_images(
    value: object,
    name: str = "image",
    channels: int = 3,
    background: Colour = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read one image or several of one size.

    Args:
        value: a picture, path, array or tensor, a batch as one array or tensor, or a list of single ones.
        name: the user's keyword, for messages.
        channels: C. Grey is repeated for 3, colour becomes its luminance for 1.
        background: what transparency is laid on, red, green and blue in [0, 1].
        max_pixels: the largest picture that is decoded.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        TypeError: something that is no image.
        ValueError: an image that cannot be read, is out of range, or differs in size from the first.
    """

    def item(one: object, what: str) -> Tensor:
        x = _unit(_channels_first(one, what, max_pixels), what)
        return _with_channels(x, channels, background, what)

    return _batched(value, name, item)


def read_masks(value: object, name: str = "mask_image", max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read one mask or several of one size; white, 1 and True mark the same pixels.

    Integers that are all 0 or 1 are taken as they are: an array of ``uint8`` made of booleans is not nearly black.

    Args:
        value: as :func:`read_images`; also (B, H, W). Colour becomes its luminance.
        name: the user's keyword, for messages.
        max_pixels: the largest picture that is decoded.

    Returns:
        (B, 1, H, W) float32 in [0, 1] on the CPU; nothing is rounded.

    Raises:
        TypeError: something that is no mask.
        ValueError: as :func:`read_images`; a picture with transparent places or a coloured palette, where it does not
            follow which pixels are marked.
    """

    def item(one: object, what: str) -> Tensor:
        x = _planes(one, what, lambda picture: _mask_values(picture, what), max_pixels)
        if x.ndim != 3:
            raise ValueError(f"{what} is a mask, (H, W) or (B, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point() and bool(torch.isin(x.long(), torch.tensor([0, 1])).all()):
            return x.float()[:, None]
        return _unit(x, what)[:, None]

    return _batched(value, name, item)


def read_label_maps(
    value: object,
    name: str = "segmentation",
    classes: int | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read one map of class labels or several of one size.

    Of a picture with a palette the indices are read and not the colours. Integers (H, W) or (B, H, W) are labels;
    floating point or booleans of three dimensions are one map with a channel per class, one-hot or soft; four
    dimensions are a batch of those.

    Args:
        value: as :func:`read_images`.
        name: the user's keyword, for messages.
        classes: K; None: not checked.
        palette: the colour of each class, 0 to 255, for a picture in colours.
        max_pixels: the largest picture that is decoded.

    Returns:
        (B, H, W) int64 labels, or (B, K, H, W) float32 in [0, 1], on the CPU.

    Raises:
        TypeError: something that is no label map.
        ValueError: a label outside [0, K - 1], another number of channels, a picture in colours without a palette.
    """

    def item(one: object, what: str) -> Tensor:
        labels = _planes(one, what, lambda picture: _labels_of(picture, palette, what), max_pixels, classed=True)
        if labels.ndim == 4:
            return _checked_classes(_unit(labels.float(), what), classes, what)
        if labels.is_floating_point():
            raise ValueError(f"{what} holds labels, which are integers, got {labels.dtype}: give one channel per class")
        return _checked_labels(labels.long(), classes, what)

    return _batched(value, name, item)


def open_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file: its first frame, turned upright.

    Args:
        path: of a PNG, JPEG, WebP, GIF, BMP or TIFF file.
        max_pixels: width times height above which nothing is decoded.

    Raises:
        ValueError: no such file, none of these formats, too large, or damaged.
    """
    name = os.fspath(path)
    if "://" in name:
        raise ValueError(f"'{name}' is an address, and ldmkit downloads nothing: give a file, or the picture itself")
    try:
        with Image.open(name, formats=FORMATS) as picture:
            return upright(picture, f"'{name}'", max_pixels)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file '{name}'") from error
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"'{name}' cannot be opened as {', '.join(FORMATS)}: {error}") from error


def upright(picture: Image.Image, what: str = "the picture", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded copy of a picture, turned as its EXIF data say.

    Raises:
        ValueError: it is larger than ``max_pixels``, which is seen before it is decoded, or its data are damaged.
    """
    width, height = picture.size
    if width * height > max_pixels or not width or not height:
        raise ValueError(f"{what} has {width} x {height} pixels, the limit is 1 to {max_pixels}: shrink it first")
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # decoders raise whatever damaged data lead them to
        raise ValueError(f"{what} cannot be decoded, it is truncated or damaged: {error}") from error


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images (B, C, H, W) in [0, 1] to 8-bit pictures: grey for 1 channel, RGB for 3, RGBA for 4.

    Raises:
        ValueError: another shape, or a value that is not finite, which would become a black pixel.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ValueError(f"pictures are made of (B, 1, 3 or 4, H, W), got shape {tuple(images.shape)}")
    bad = [i for i, finite in enumerate(images.isfinite().flatten(1).all(1).tolist()) if not finite]
    if bad:
        raise ValueError(f"images {bad} hold values that are not finite: run the first stage in float32 or bfloat16")
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array) for array in arrays]


def _batched(value: object, name: str, item: Callable[[object, str], Tensor]) -> Tensor:
    """Read a single value, a batch or a list of single values; ``item`` gives (n, ...)."""
    if not isinstance(value, list | tuple):
        return item(value, name)
    if not value:
        raise ValueError(f"{name} is an empty list: give at least one")
    rows = [item(one, f"{name}[{i}]") for i, one in enumerate(value)]
    for i, row in enumerate(rows):
        if len(row) != 1:
            raise ValueError(f"{name}[{i}] is a batch of {len(row)}: give a list of single ones, or one batch alone")
        if row.shape != rows[0].shape:
            raise ValueError(
                f"{name}[{i}] is {_size(row)} and {name}[0] {_size(rows[0])}: bring them to one size and form, or make "
                "one call for each"
            )
    return torch.cat(rows)


def _size(x: Tensor) -> str:
    return " x ".join(map(str, x.shape[1:]))


def _picture(value: object, what: str, max_pixels: int) -> Image.Image | None:
    """The decoded picture of a path or picture; None for what is neither."""
    if isinstance(value, str | os.PathLike):
        try:
            return open_image(value, max_pixels)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    return upright(value, what, max_pixels) if isinstance(value, Image.Image) else None


def _tensor(value: object, what: str) -> Tensor:
    """A tensor or an array as a tensor on the CPU, its axes as they are."""
    if isinstance(value, Tensor):
        x = value.detach().cpu()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        x = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    else:
        given = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{what} must be a PIL image, a path, a numpy array, a tensor or a list of them, got {given}")
    if not x.numel() or x.is_complex():
        raise ValueError(f"{what} holds no image: shape {tuple(x.shape)} of {x.dtype}")
    return x


def _channels_first(value: object, what: str, max_pixels: int) -> Tensor:
    """(n, C, H, W) of the values as they are."""
    picture = _picture(value, what, max_pixels)
    x = _tensor(value if picture is None else _pixels(picture, what), what)
    if x.ndim == 2:
        return x[None, None]
    if x.ndim not in (3, 4):
        raise ValueError(f"{what} has {x.ndim} dimensions: give (H, W), an image with channels, or a batch of those")
    x = x if isinstance(value, Tensor) else x.movedim(-1, -3)
    return x if x.ndim == 4 else x[None]


def _planes(
    value: object, what: str, read: Callable[[Image.Image], Array], max_pixels: int, classed: bool = False
) -> Tensor:
    """(n, H, W); (n, K, H, W) of four dimensions, or of three that are not integers where they may be ``classed``."""
    picture = _picture(value, what, max_pixels)
    x = _tensor(value if picture is None else read(picture), what)
    last = isinstance(value, np.ndarray)
    if x.ndim == 4 and x.shape[3 if last else 1] == 1:
        x = x.squeeze(3 if last else 1)
    elif x.ndim == 3 and last and x.shape[2] == 1:
        x = x[..., 0]
    if x.ndim == 3 and classed and (x.is_floating_point() or x.dtype == torch.bool):
        x = x[None]
    if x.ndim == 4 and last:
        x = x.movedim(3, 1)
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"{what} has {x.ndim} dimensions: give (H, W) or a batch of those")
    return x[None] if x.ndim == 2 else x


def _pixels(picture: Image.Image, what: str) -> Array:
    """A picture's values, (H, W) or (H, W, C): 8-bit, 16-bit or floating point."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _deep(picture, what)
    clear = picture.has_transparency_data
    if picture.mode in GREYS:
        return np.asarray(picture.convert("LA" if clear else GREYS[picture.mode]))
    return np.asarray(picture.convert("RGBA" if clear else "RGB"))


def _deep(picture: Image.Image, what: str) -> Array:
    """The modes of more than 8 bits: ``F`` in [0, 1]; ``I`` and ``I;16`` in [0, 65535]."""
    values = np.asarray(picture)
    if picture.mode == "F":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"{what} is a picture of mode '{picture.mode}' with values in [{values.min()}, {values.max()}]; integers "
            "of more than 8 bits lie in [0, 65535]: rescale it"
        )
    return values.astype(np.uint16)


def _unit(x: Tensor, what: str) -> Tensor:
    """Values as float32 in [0, 1], integers by the range of their type."""
    if x.dtype in SCALES:
        return x.float() / SCALES[x.dtype]
    if not x.is_floating_point():
        raise ValueError(f"{what} holds {x.dtype}, whose range does not say what is white: give uint8, or [0, 1]")
    x = x.float()
    if not bool(x.isfinite().all()):
        raise ValueError(f"{what} holds values that are not finite")
    low, high = float(x.min()), float(x.max())
    if low < -SLACK or high > 1 + SLACK:
        fix = "x / 2 + 0.5 brings [-1, 1] there" if max(-low, high) < 1.01 else "divide by the largest there can be"
        raise ValueError(f"{what} must lie in [0, 1], got values in [{low:.4g}, {high:.4g}]: {fix}")
    return x.clamp(0, 1)


def _with_channels(x: Tensor, channels: int, background: Colour, what: str) -> Tensor:
    """(n, C, H, W) with the channels asked for: transparency laid on the background, grey and colour converted."""
    given = x.shape[1]
    if given == channels:
        return x
    if given in (2, 4):
        colour, opacity = x[:, :-1], x[:, -1:]
        below = torch.tensor(background).view(1, 3, 1, 1) if given == 4 else _luminance(background)
        return _with_channels(torch.lerp(below.expand_as(colour), colour, opacity), channels, background, what)
    if (given, channels) == (1, 3):
        return x.expand(-1, 3, -1, -1).clone()
    if (given, channels) == (3, 1):
        return (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).clamp(0, 1)
    raise ValueError(
        f"{what} has {given} channels, the model's images {channels}: arrays are (H, W, C), tensors (C, H, W)"
    )


def _luminance(colour: Colour) -> Tensor:
    return torch.tensor(sum(part * weight for part, weight in zip(colour, LUMA, strict=True))).view(1, 1, 1, 1)


def _mask_values(picture: Image.Image, what: str) -> Array:
    """A picture's marks, (H, W)."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _deep(picture, what)
    clear = picture.has_transparency_data
    flat = picture.convert(("LA" if picture.mode in GREYS else "RGBA") if clear else "RGB")
    if clear and flat.getchannel("A").getextrema() != (255, 255):
        raise ValueError(
            f"{what} is partly transparent, and its colours and its transparency may mark different pixels: give "
            "mask.getchannel('A'), or mask.convert('RGB')"
        )
    if picture.mode == "P" and np.ptp(np.asarray(picture.convert("RGB")), axis=2).max() > 0:
        raise ValueError(f"{what} has a palette of colours, which mark nothing: give e.g. np.asarray(mask) == 1")
    return np.asarray(flat.convert("L"))


def _labels_of(picture: Image.Image, palette: Sequence[tuple[int, int, int]] | None, what: str) -> Array:
    """A picture's labels, (H, W) int64."""
    if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int64)
    if palette is None:
        raise ValueError(
            f"{what} is a picture of mode '{picture.mode}', whose colours are no labels: save it with a palette (mode "
            "'P'), give the labels as integers, or build the task with palette="
        )
    table = {r << 16 | g << 8 | b: label for label, (r, g, b) in enumerate(palette)}
    rgb = np.asarray(picture.convert("RGB")).astype(np.int64)
    codes, places = np.unique(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2], return_inverse=True)
    for code in codes.tolist():
        if code not in table:
            raise ValueError(f"{what} has the colour {(code >> 16, code >> 8 & 255, code & 255)}, not in the palette")
    return np.array([table[code] for code in codes.tolist()])[places].reshape(rgb.shape[:2])


def _checked_labels(labels: Tensor, classes: int | None, what: str) -> Tensor:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        last = "" if classes is None else str(classes - 1)
        raise ValueError(f"{what} holds labels in [{low}, {high}]; the model's classes are 0 to {last}: map them first")
    return labels


def _checked_classes(maps: Tensor, classes: int | None, what: str) -> Tensor:
    if classes is not None and maps.shape[1] != classes:
        raise ValueError(
            f"{what} has {maps.shape[1]} channels, the model {classes} classes: one-hot arrays are (H, W, K), tensors "
            "(K, H, W); labels are integers"
        )
    return maps
