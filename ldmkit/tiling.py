r"""Windows over a map, and the sum of what each window gives.

Neighbouring windows overlap, and each fades out where another fades in:

.. math:: y = \sum_k w_k \, f(x_k), \qquad \sum_k w_k = 1

so that y is as smooth as the parts are, and equals f(x) where f acts on single places. Windows may be of any shape and
overlap by any amount; the last ones of a row and a column are moved in so that they end where the map does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A rectangle of a map: rows ``[top, top + height)``, columns ``[left, left + width)``."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """This part of (..., H, W), as a view."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def times(self, factor: int) -> Window:
        """The same place on a map that is so many times larger."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def region(self, shape: tuple[int, int]) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in [0, 1] of a map of (H, W)."""
        H, W = shape
        return self.left / W, self.top / H, (self.left + self.width) / W, (self.top + self.height) / H


@dataclass(frozen=True)
class Tiles:
    """How a large image is cut: the size of a window and what neighbours share, in pixels of the image.

    Args:
        size: of a window, a number or (height, width).
        overlap: of neighbours, a number or (vertical, horizontal); at least this much, less than the size.

    Raises:
        ValueError: a size below 1, or an overlap that leaves a window nothing of its own.
    """

    size: int | tuple[int, int]
    overlap: int | tuple[int, int] = 0

    def __post_init__(self) -> None:
        for side, shared in zip(_pair(self.size), _pair(self.overlap), strict=True):
            if side < 1 or not 0 <= shared < side:
                raise ValueError(
                    f"tiles need a size of at least 1 and an overlap below it, got size={self.size} and "
                    f"overlap={self.overlap}"
                )

    def cells(self, factor: int, multiple: int = 1) -> Tiles:
        """The same tiles in latent cells of ``factor`` pixels.

        Args:
            factor: pixels per cell.
            multiple: the sides of a window must be multiples of so many cells.

        Raises:
            ValueError: a size that is no multiple of ``factor * multiple`` pixels, with the nearest two that are, or
                an overlap that is no multiple of ``factor``.
        """
        step = factor * multiple
        for side in _pair(self.size):
            if side % step:
                near = [n for n in (side // step * step, (side // step + 1) * step) if n]
                raise ValueError(
                    f"a tile of {side} px does not fit the model, which takes multiples of {step} px: use "
                    f"{' or '.join(map(str, near))}"
                )
        for shared in _pair(self.overlap):
            if shared % factor:
                raise ValueError(f"an overlap of {shared} px is no multiple of {factor} px, a latent cell")
        (height, width), (down, across) = _pair(self.size), _pair(self.overlap)
        return Tiles((height // factor, width // factor), (down // factor, across // factor))

    def windows(self, shape: tuple[int, int]) -> tuple[Window, ...]:
        """The windows over a map of (H, W), row by row; a window is never larger than the map."""
        (height, width), (down, across) = _pair(self.size), _pair(self.overlap)
        H, W = shape
        tops, lefts = _starts(H, height, down), _starts(W, width, across)
        return tuple(Window(top, left, min(height, H), min(width, W)) for top, left in product(tops, lefts))


def weights(windows: Sequence[Window], shape: tuple[int, int], device: torch.device | None = None) -> list[Tensor]:
    """For each window its share (height, width) of every place, float32; over all windows they sum to 1.

    A share rises as half a cosine from the border that a neighbour overlaps to where the neighbour ends.

    Args:
        windows: rows by columns, as :meth:`Tiles.windows` gives them.
        shape: (H, W) of the map.
        device: of the shares.
    """
    share = _shares(windows, shape, device)
    return [share(window) for window in windows]


def blended(
    windows: Sequence[Window],
    shares: Sequence[Tensor],
    part: Callable[[int, Window], Tensor],
    out: Tensor,
) -> Tensor:
    """Add up what every window gives, into ``out``.

    Args:
        windows: on ``out``'s map.
        shares: from :func:`weights`.
        part: ``(k, window)`` to (..., height, width), the k-th window's own.
        out: (..., H, W) of zeros.
    """
    for k, window in enumerate(windows):
        window.of(out).add_(part(k, window) * shares[k].to(out))
    return out


def encoded(
    encode: Callable[[Tensor, Tensor | None], Tensor], image: Tensor, noise: Tensor | None, tiles: Tiles, factor: int
) -> Tensor:
    """Latents (B, c, h, w) of an image (B, C, H, W), by overlapping windows.

    Args:
        encode: of a first stage.
        image: H and W are multiples of ``factor``.
        noise: (B, c, h, w) for a draw, cut as the image is.
        tiles: in pixels.
        factor: pixels per latent cell.
    """
    shape = image.shape[-2] // factor, image.shape[-1] // factor
    windows = tiles.cells(factor).windows(shape)

    def part(window: Window) -> Tensor:
        draw = None if noise is None else window.of(noise).contiguous()
        return encode(window.times(factor).of(image).contiguous(), draw)

    return _summed(part, windows, 1, shape)


def decoded(decode: Callable[[Tensor], Tensor], z: Tensor, tiles: Tiles, factor: int) -> Tensor:
    """The image (B, C, H, W) of latents (B, c, h, w), by overlapping windows.

    Args:
        decode: of a first stage.
        z: scaled latents.
        tiles: in pixels.
        factor: pixels per latent cell.
    """
    h, w = z.shape[-2:]
    windows = tiles.cells(factor).windows((h, w))
    return _summed(lambda window: decode(window.of(z).contiguous()), windows, factor, (h * factor, w * factor))


def _summed(part: Callable[[Window], Tensor], windows: Sequence[Window], times: int, shape: tuple[int, int]) -> Tensor:
    """The weighted sum of what every window gives, on a map of ``shape`` that is so many times the windows' own.

    One window is held at a time, and its share is made when it is needed: beside the result nothing is as large as it.
    The sum is taken in float32 at least.
    """
    first = part(windows[0])
    if len(windows) == 1:
        return first
    places = [window.times(times) for window in windows]
    share = _shares(places, shape, first.device)
    out = first.new_zeros(*first.shape[:-2], *shape, dtype=torch.promote_types(first.dtype, torch.float32))
    places[0].of(out).add_(first * share(places[0]))
    for window, place in zip(windows[1:], places[1:], strict=True):
        place.of(out).add_(part(window) * share(place))
    return out.to(first.dtype)


def seam(image: Tensor, windows: Sequence[Window]) -> float:
    """How much steeper an image is across the borders of windows than elsewhere: 1 where no seam can be seen.

    Args:
        image: (B, C, H, W).
        windows: on the image's own pixels.

    Returns:
        The mean absolute difference of neighbouring pixels across the borders where a window begins or ends inside
        the image, over that of all other neighbours.
    """
    H, W = image.shape[-2:]
    across = {edge for w in windows for edge in (w.top, w.top + w.height) if 0 < edge < H}
    along = {edge for w in windows for edge in (w.left, w.left + w.width) if 0 < edge < W}
    vertical = image.double().diff(dim=-2).abs().mean(dim=(0, 1, 3))
    horizontal = image.double().diff(dim=-1).abs().mean(dim=(0, 1, 2))
    borders = [vertical[edge - 1] for edge in across] + [horizontal[edge - 1] for edge in along]
    inside = [v for i, v in enumerate(vertical, 1) if i not in across]
    inside += [h for i, h in enumerate(horizontal, 1) if i not in along]
    if not borders or not inside:
        return 1.0
    return float(torch.stack(borders).mean() / torch.stack(inside).mean())


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Where windows of one size begin so that the last ends at ``length`` and neighbours share at least ``overlap``."""
    if size >= length:
        return [0]
    count = math.ceil((length - overlap) / (size - overlap))
    return [round(k * (length - size) / (count - 1)) for k in range(count)]


def _shares(
    windows: Sequence[Window], shape: tuple[int, int], device: torch.device | None
) -> Callable[[Window], Tensor]:
    """``window -> (height, width)``: its share of its rows times that of its columns."""
    rows = _profiles(sorted({(window.top, window.height) for window in windows}), shape[0], device)
    columns = _profiles(sorted({(window.left, window.width) for window in windows}), shape[1], device)
    return lambda window: rows[window.top][:, None] * columns[window.left]


def _profiles(spans: Sequence[tuple[int, int]], length: int, device: torch.device | None) -> dict[int, Tensor]:
    """Where a span (start, size) begins -> its share of each of its places, float32; over all spans they sum to 1."""
    fades = [_fade(spans, start, size) for start, size in spans]
    total = torch.zeros(length, dtype=torch.float64)
    for (start, size), fade in zip(spans, fades, strict=True):
        total[start : start + size] += fade
    return {
        start: (fade / total[start : start + size]).to(device, torch.float32)
        for (start, size), fade in zip(spans, fades, strict=True)
    }


def _fade(spans: Sequence[tuple[int, int]], start: int, size: int) -> Tensor:
    """The share of a span at each of its places, before the shares are made to sum to 1: 1 where it is alone."""
    before = [begin + length for begin, length in spans if begin < start < begin + length]
    after = [begin for begin, length in spans if start < begin < start + size]
    fade = torch.ones(size, dtype=torch.float64)
    place = torch.arange(size, dtype=torch.float64) + 0.5
    if before:
        fade *= _rise(place / (min(before) - start))
    if after:
        fade *= _rise((size - place) / (start + size - max(after)))
    return fade


def _rise(share: Tensor) -> Tensor:
    return 0.5 - 0.5 * (math.pi * share.clamp(0, 1)).cos()
