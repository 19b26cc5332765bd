r"""How different two images look: distances ``(a, b) -> (B,)`` for the loss of a first stage.

:class:`LPIPS` compares features :math:`y_l` of VGG16, normalised over their channels, at five depths l:

.. math::

    d(a, b) = \sum_l \frac{1}{h_l w_l} \sum_{h, w} \sum_c w_{l c} \,
        \big( \hat y_{l c h w}(a) - \hat y_{l c h w}(b) \big)^2

It needs weights, and nothing is fetched: :func:`read_lpips` reads them from files that the user has. Without any,
:class:`GradientDistance` compares edges at several scales; it knows nothing of what people see.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.errors import CheckpointError
from ldmkit.weights.reading import opened

DEPTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG16's convolutions, a tuple for each depth; pooling lies between depths."""

SMALLEST = 16
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SQUARED_EPS = 1e-20

_TRUNK = re.compile(r"(?:.*\.)?(?:features|slice\d)\.(\d+)\.(weight|bias)")
_HEAD = re.compile(r"(?:.*\.)?lin(\d)\.model\.1\.weight")


class VGG16(nn.Module):
    """The convolutions of VGG16, giving the features after the last nonlinearity of each depth; never trained.

    Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), table 1, column D.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depths = nn.ModuleList()
        channels = 3
        for widths in DEPTHS:
            given = (channels, *widths[:-1])
            self.depths.append(nn.ModuleList(nn.Conv2d(c, w, 3, padding=1) for c, w in zip(given, widths, strict=True)))
            channels = widths[-1]
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W), with ImageNet's mean 0 and deviation 1 -> five maps, each of half the sides of the last."""
        maps = []
        for depth, convolutions in enumerate(self.depths):
            x = F.max_pool2d(x, 2) if depth else x
            for convolution in convolutions:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            maps.append(x)
        return maps

    def places(self) -> dict[int, nn.Conv2d]:
        """The convolutions by their places in torchvision's ``features``, where nonlinearities and pooling count."""
        found, place = {}, 0
        for convolutions in self.depths:
            for convolution in convolutions:  # type: ignore[attr-defined]
                found[place] = convolution
                place += 2
            place += 1
        return found


class LPIPS(nn.Module):
    """The learned perceptual distance, version 0.1, with VGG16; lower is more alike, 0 for the same image.

    Args:
        trunk: with its weights.
        heads: five tensors of :data:`DEPTHS` last channels each, how much a channel counts; not negative.

    Raises:
        ValueError: heads of other sizes.

    Source: Zhang et al. 2018 (arXiv 1801.03924), eq. 1; constants: its code.
    """

    def __init__(self, trunk: VGG16, heads: Sequence[Tensor]) -> None:
        super().__init__()
        sizes, wanted = [head.numel() for head in heads], [widths[-1] for widths in DEPTHS]
        if sizes != wanted:
            raise ValueError(f"LPIPS with VGG16 has heads of {wanted} weights, got {sizes}")
        self.trunk = trunk
        self.heads = nn.ParameterList(nn.Parameter(head.detach().flatten().float(), False) for head in heads)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of images, each pair on its own.

        Args:
            a: (B, 3, H, W) in [-1, 1], sides at least 16.
            b: the same.

        Returns:
            (B,) float32, at least 0.

        Raises:
            ValueError: other shapes.
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS compares images (B, 3, H, W) of at least {SMALLEST} pixels a side, got {tuple(a.shape)} and "
                f"{tuple(b.shape)}: for other channels take GradientDistance"
            )
        pairs = zip(self.heads, self._features(a), self._features(b), strict=True)
        parts = [((head[:, None, None] * (x - y).square()).sum(dim=1)).mean(dim=(1, 2)) for head, x, y in pairs]
        return torch.stack(parts).sum(dim=0)

    def _features(self, image: Tensor) -> list[Tensor]:
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        return [_normalised(features.float()) for features in self.trunk((image - shift) / scale)]


def _normalised(features: Tensor) -> Tensor:
    """Features of norm 1 over their channels; where all are 0 they stay 0."""
    return features * features.square().sum(dim=1, keepdim=True).clamp_min(SQUARED_EPS).rsqrt()


class GradientDistance(nn.Module):
    r"""The mean absolute difference of neighbouring pixels' differences, summed over scales; needs no weights.

    .. math:: d(a, b) = \sum_{s=0}^{S-1} \operatorname{mean} | \nabla a_s - \nabla b_s |, \qquad a_0 = a

    It is a stand-in for LPIPS: it punishes blur and ringing, and is blind to what a shift of one pixel means to people.
    Images that differ by a constant have distance 0.

    Args:
        scales: S, how many; images are averaged over 2 x 2 pixels from one to the next, as long as 2 are left.

    Raises:
        ValueError: no scales.
    """

    def __init__(self, scales: int = 4) -> None:
        super().__init__()
        if scales < 1:
            raise ValueError(f"a distance over scales needs at least 1, got {scales}")
        self.scales = scales

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of images (B, C, H, W), sides at least 2 -> (B,) float32.

        Raises:
            ValueError: other shapes.
        """
        if a.shape != b.shape or a.ndim != 4 or min(a.shape[2:]) < 2:
            raise ValueError(
                f"a distance of edges compares images of one shape (B, C, H, W) with sides of at least 2, got "
                f"{tuple(a.shape)} and {tuple(b.shape)}"
            )
        difference = a.float() - b.float()  # everything here is linear but the last step
        parts = [_edges(difference)]
        for _ in range(self.scales - 1):
            if min(difference.shape[2:]) < 4:
                break
            difference = F.avg_pool2d(difference, 2)
            parts.append(_edges(difference))
        return torch.stack(parts).sum(dim=0)


def _edges(difference: Tensor) -> Tensor:
    rows, columns = difference.diff(dim=2).abs(), difference.diff(dim=3).abs()
    return 0.5 * (rows.mean(dim=(1, 2, 3)) + columns.mean(dim=(1, 2, 3)))


def read_lpips(weights: str | os.PathLike[str], heads: str | os.PathLike[str] | None = None) -> LPIPS:
    """LPIPS with weights from files; nothing in them is run.

    Args:
        weights: VGG16 as torchvision writes it (``vgg16-397923af.pth``, or safetensors with the same names), or
            another file that holds its convolutions by their places, such as a published first stage with its loss.
        heads: the file of the five linear heads, ``vgg.pth``; None: those in ``weights``, if it holds any, else those
            that the installed package ``lpips`` brings.

    Raises:
        FileNotFoundError: there is no such file, or no heads anywhere.
        CheckpointError: a damaged or hostile file, or one without these tensors.
    """
    path = Path(weights)
    trunk = _read_trunk(path)
    own = _read(path, _HEAD) if heads is None else {}
    source = path if own else Path(heads) if heads is not None else _installed_heads()
    return LPIPS(trunk, _heads(own or _read(source, _HEAD), source)).eval()


def _read_trunk(path: Path) -> VGG16:
    trunk = VGG16()
    found = _read(path, _TRUNK)
    for place, convolution in trunk.places().items():
        for name, parameter in convolution.named_parameters():
            _copy(parameter, found.get((str(place), name)), f"features.{place}.{name}", path)
    return trunk


def _heads(found: Mapping[tuple[str, ...], Tensor], path: Path) -> list[Tensor]:
    heads = [torch.empty(1, widths[-1], 1, 1) for widths in DEPTHS]
    for depth, head in enumerate(heads):
        _copy(head, found.get((str(depth),)), f"lin{depth}.model.1.weight", path)
    return heads


def _read(path: Path, pattern: re.Pattern[str]) -> Mapping[tuple[str, ...], Tensor]:
    """The tensors of a file whose names fit, by the groups of the pattern."""
    with opened(path) as contents:
        fits = {name: match.groups() for name in contents.tensors if (match := pattern.fullmatch(name))}
        return {groups: contents.read(name) for name, groups in fits.items()}


@torch.no_grad()
def _copy(target: Tensor, value: Tensor | None, name: str, path: Path) -> None:
    if value is None or value.shape != target.shape:
        got = "none" if value is None else f"{tuple(value.shape)}"
        raise CheckpointError(
            f"{path} is no file for LPIPS with VGG16: '{name}' should be {tuple(target.shape)} and is {got}"
        )
    target.copy_(value)


def _installed_heads() -> Path:
    spec = find_spec("lpips")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
    if path is None or not path.exists():
        raise FileNotFoundError(
            "LPIPS needs its linear heads, and the package that brings them is not installed: pip install lpips, or "
            "give heads='vgg.pth'; GradientDistance needs no weights"
        )
    return path
