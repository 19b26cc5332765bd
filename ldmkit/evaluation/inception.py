r"""The network that FID, KID and IS are defined by: Inception v3 as it was published in 2015.

The published file differs from the Inception v3 that libraries offer:

- images are resized to 299 x 299 by plain bilinear sampling at :math:`i \cdot h / 299`, which aligns the first pixel
  and not the last, and bytes x become :math:`(x - 128) / 128`;
- an average inside a block does not count the border, and the last block pools the maximum instead;
- there are 1008 classes, and IS takes the logits without their bias.

Nothing is fetched: the user has the file.

Source: Szegedy et al. 2015 (arXiv 1512.00567); Heusel et al. 2017 (arXiv 1706.08500); the resizing: TensorFlow 1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.errors import CheckpointError
from ldmkit.weights.reading import opened

WIDTH, CLASSES, SIDE = 2048, 1008, 299

Chain = Sequence[str | tuple[str, ...]]
"""Names of what runs one after the other; several in one place run side by side."""


class Convolution(nn.Module):
    """A convolution without bias, normalised over the batch, rectified; ``bordered`` keeps the size at stride 1."""

    def __init__(
        self, given: int, made: int, kernel: int | tuple[int, int], stride: int = 1, bordered: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        border = (sides[0] // 2, sides[1] // 2) if bordered else (0, 0)
        self.conv = nn.Conv2d(given, made, sides, stride, border, bias=False)
        self.bn = nn.BatchNorm2d(made, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, given, H, W) -> (B, made, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions side by side, joined by channels; ``pool`` in a chain is the pooling."""

    def __init__(self, pool: nn.Module, chains: Sequence[Chain], **convolutions: Convolution) -> None:
        super().__init__()
        self.chains = chains
        self.pool = pool
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return torch.cat([self._run(chain, x) for chain in self.chains], dim=1)

    def _run(self, chain: Chain, x: Tensor) -> Tensor:
        for link in chain:
            names = (link,) if isinstance(link, str) else link
            x = torch.cat([self.get_submodule(name)(x) for name in names], dim=1)
        return x


def averaged() -> nn.Module:
    """The mean of 3 x 3 neighbours, of those there are."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def block_a(given: int, pooled: int) -> Mixed:
    """Kernels of 1, 5 and twice 3."""
    return Mixed(
        averaged(),
        (
            ("branch1x1",),
            ("branch5x5_1", "branch5x5_2"),
            ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            ("pool", "branch_pool"),
        ),
        branch1x1=Convolution(given, 64, 1),
        branch5x5_1=Convolution(given, 48, 1),
        branch5x5_2=Convolution(48, 64, 5),
        branch3x3dbl_1=Convolution(given, 64, 1),
        branch3x3dbl_2=Convolution(64, 96, 3),
        branch3x3dbl_3=Convolution(96, 96, 3),
        branch_pool=Convolution(given, pooled, 1),
    )


def block_b() -> Mixed:
    """From 35 pixels a side to 17."""
    return Mixed(
        nn.MaxPool2d(3, stride=2),
        (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), ("pool",)),
        branch3x3=Convolution(288, 384, 3, 2, bordered=False),
        branch3x3dbl_1=Convolution(288, 64, 1),
        branch3x3dbl_2=Convolution(64, 96, 3),
        branch3x3dbl_3=Convolution(96, 96, 3, 2, bordered=False),
    )


def block_c(inner: int) -> Mixed:
    """Kernels of 7 in one direction after the other."""
    return Mixed(
        averaged(),
        (
            ("branch1x1",),
            ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
            ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
            ("pool", "branch_pool"),
        ),
        branch1x1=Convolution(768, 192, 1),
        branch7x7_1=Convolution(768, inner, 1),
        branch7x7_2=Convolution(inner, inner, (1, 7)),
        branch7x7_3=Convolution(inner, 192, (7, 1)),
        branch7x7dbl_1=Convolution(768, inner, 1),
        branch7x7dbl_2=Convolution(inner, inner, (7, 1)),
        branch7x7dbl_3=Convolution(inner, inner, (1, 7)),
        branch7x7dbl_4=Convolution(inner, inner, (7, 1)),
        branch7x7dbl_5=Convolution(inner, 192, (1, 7)),
        branch_pool=Convolution(768, 192, 1),
    )


def block_d() -> Mixed:
    """From 17 pixels a side to 8."""
    return Mixed(
        nn.MaxPool2d(3, stride=2),
        (
            ("branch3x3_1", "branch3x3_2"),
            ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),
            ("pool",),
        ),
        branch3x3_1=Convolution(768, 192, 1),
        branch3x3_2=Convolution(192, 320, 3, 2, bordered=False),
        branch7x7x3_1=Convolution(768, 192, 1),
        branch7x7x3_2=Convolution(192, 192, (1, 7)),
        branch7x7x3_3=Convolution(192, 192, (7, 1)),
        branch7x7x3_4=Convolution(192, 192, 3, 2, bordered=False),
    )


def block_e(given: int, pool: nn.Module) -> Mixed:
    """Kernels of 3 in both directions side by side."""
    return Mixed(
        pool,
        (
            ("branch1x1",),
            ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
            ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
            ("pool", "branch_pool"),
        ),
        branch1x1=Convolution(given, 320, 1),
        branch3x3_1=Convolution(given, 384, 1),
        branch3x3_2a=Convolution(384, 384, (1, 3)),
        branch3x3_2b=Convolution(384, 384, (3, 1)),
        branch3x3dbl_1=Convolution(given, 448, 1),
        branch3x3dbl_2=Convolution(448, 384, 3),
        branch3x3dbl_3a=Convolution(384, 384, (1, 3)),
        branch3x3dbl_3b=Convolution(384, 384, (3, 1)),
        branch_pool=Convolution(given, 192, 1),
    )


class Inception(nn.Module):
    """Images to 2048 features; submodules have the names of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, bordered=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, bordered=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, bordered=False)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = block_a(192, 32)
        self.Mixed_5c = block_a(256, 64)
        self.Mixed_5d = block_a(288, 64)
        self.Mixed_6a = block_b()
        self.Mixed_6b = block_c(128)
        self.Mixed_6c = block_c(160)
        self.Mixed_6d = block_c(160)
        self.Mixed_6e = block_c(192)
        self.Mixed_7a = block_d()
        self.Mixed_7b = block_e(1280, averaged())
        self.Mixed_7c = block_e(2048, nn.MaxPool2d(3, stride=1, padding=1))
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], of bytes -> features (B, 2048)."""
        x = (resized((x * 255).round()) - 128) / 128
        for name, part in self.named_children():
            if name != "fc":
                x = part(x)
        return x.mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, 2048) -> (B, 1008) without the bias, as IS was defined."""
        return F.linear(features, self.fc.weight)


def resized(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 299, 299): between the pixels at i H / 299, rounded down, and the next."""
    for dim in (2, 3):
        count = x.shape[dim]
        at = torch.arange(SIDE, dtype=x.dtype, device=x.device) * (count / SIDE)
        low = at.long()
        share = (at - low).view(-1, 1) if dim == 2 else at - low
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(count - 1)), share)
    return x


def read_network(path: str | os.PathLike[str]) -> Inception:
    """The network with the weights of a file; nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a damaged or hostile file, or one of another network.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"there is no file {path}. The weights of FID are pt_inception-2015-12-05-6726825d.pth (96 MB) of "
            "https://github.com/mseitzer/pytorch-fid/releases, or the same file from torch-fidelity; ldmkit downloads "
            "nothing. A network of your own: Features(name, network)"
        )
    network = Inception()
    fill(network, path)
    return network.eval()


@torch.no_grad()
def fill(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Give a network the weights of a file, every one of both; counters of batches may be missing.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a damaged or hostile file, or one of another network; the network is left as it was.
    """
    own = network.state_dict()
    with opened(path) as contents:
        wanted = {name: tuple(value.shape) for name, value in own.items()}
        given = contents.shapes
        wrong = [
            name
            for name in sorted({*wanted, *given})
            if wanted.get(name) != given.get(name) and not name.endswith("num_batches_tracked")
        ]
        if wrong:
            name = wrong[0]
            raise CheckpointError(
                f"{path} holds another network than {type(network).__name__}: {len(wrong)} of {len(wanted)} weights "
                f"differ; '{name}' should be {wanted.get(name, 'absent')} and is {given.get(name, 'absent')}"
            )
        for name in wanted.keys() & given.keys():
            own[name].copy_(contents.read(name))
