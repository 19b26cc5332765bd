"""A first stage that works by overlapping windows: any size, in the memory of one window.

A window sees less than the image: its norms are its own and its attention ends at its border, so that the result is
near what the whole would give and not equal to it; the overlap hides the difference. Where the result must be equal,
there is :class:`~ldmkit.first_stages.exact.TiledExact`.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from ldmkit.tiling import Tiles, decoded, encoded


class Stage(Protocol):
    """What is wrapped: a first stage."""

    factor: int
    channels: int
    image_channels: int

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


def check_stage(name: str, of: object) -> Stage:
    """The first stage that is wrapped.

    Raises:
        TypeError: it is none.
    """
    wanted = ("factor", "channels", "image_channels", "encode", "decode")
    missing = [word for word in wanted if getattr(of, word, None) is None]
    if not isinstance(of, nn.Module) or missing:
        raise TypeError(f"first stage '{name}' wraps a first stage, got {type(of).__name__} without {missing}")
    return cast(Stage, of)


class Tiled(nn.Module):
    """Encodes and decodes another first stage by overlapping windows, in the memory of one.

    Args:
        of: the first stage.
        tile: the side of a window in pixels, or (height, width); multiples of the stage's factor.
        overlap: what neighbours share, in pixels; a multiple of the factor below the tile. More hides more.

    Raises:
        TypeError: ``of`` is no first stage.
        ValueError: a tile or overlap that is no multiple of the factor, with the nearest that are.

    Source: after the tiled model of the original's ``split_input_params``; windows fade into each other here.
    """

    def __init__(self, of: nn.Module, tile: int | tuple[int, int] = 512, overlap: int | tuple[int, int] = 64) -> None:
        super().__init__()
        stage = check_stage("tiled", of)
        self.of = of
        self.tile = tile if isinstance(tile, int) else (tile[0], tile[1])
        self.overlap = overlap if isinstance(overlap, int) else (overlap[0], overlap[1])
        self.factor = stage.factor
        self.multiple = stage.factor
        self.channels = stage.channels
        self.image_channels = stage.image_channels
        self._tiles.cells(self.factor)

    @property
    def _tiles(self) -> Tiles:
        return Tiles(self.tile, self.overlap)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] to scaled latents (B, c, H / factor, W / factor); see the wrapped stage."""
        stage = cast(Stage, self.of)
        if image.ndim != 4 or any(side % self.factor for side in image.shape[-2:]):
            return stage.encode(image, noise)  # it refuses them by name
        return encoded(stage.encode, image, noise, self._tiles, self.factor)

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, c, h, w) to images (B, C, factor h, factor w); see the wrapped stage."""
        stage = cast(Stage, self.of)
        return stage.decode(z) if z.ndim != 4 else decoded(stage.decode, z, self._tiles, self.factor)
