"""The network through which a distance looks at images, and by which names its figures may go.

FID, KID and IS are what the published weights of Inception v3 say, and nothing else: :func:`read_inception` compares
the file's SHA-256 with that of the published one. Every other network is named by its user, and so are its figures:
``fd_shapes_v1``, ``kd_shapes_v1``, ``score_shapes_v1``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.evaluation.digest import digest_of, digest_of_file
from ldmkit.evaluation.inception import Inception, fill, read_network

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of ``pt_inception-2015-12-05-6726825d.pth``."""

_CLAIMS = re.compile(r"(?:^|_)(?:fid|kid|is)(?:\d\w*)?(?:_|$)")

STANDARD = {"fd": "fid", "kd": "kid", "score": "is", "precision": "precision", "recall": "recall"}
"""A figure -> what it is called with the published weights."""


@dataclass(frozen=True, eq=False)
class Features:
    """A network that gives features of images.

    Args:
        name: lower-case letters, digits and underscores; part of every figure's name.
        network: images (B, 3, H, W) in [0, 1], float32 -> features (B, D); in evaluation mode, on its device.
        head: features -> logits (B, K) of classes, for the score; None: no score.
        file: where its weights were read from.
        file_sha256: of that file.

    Raises:
        ValueError: a name that is none or claims to be FID, KID or IS; a network in training mode.
    """

    name: str
    network: nn.Module
    head: Callable[[Tensor], Tensor] | None = None
    file: str | None = None
    file_sha256: str | None = None
    weights_sha256: str = field(init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or _CLAIMS.search(self.name):
            raise ValueError(
                "features are named by lower-case letters, digits and underscores, as 'shapes_v1', and not after FID, "
                f"KID or IS, which are of the published Inception alone; got {self.name!r}"
            )
        if self.network.training:
            raise ValueError(f"the network of '{self.name}' is in training mode: call its eval() first")
        object.__setattr__(self, "weights_sha256", digest_of(self.network))

    @property
    def published(self) -> bool:
        """Whether these are the features of the published file, so that figures may be called FID, KID and IS."""
        return type(self.network) is Inception and self.file_sha256 == PUBLISHED

    def key(self, figure: str) -> str:
        """What a figure of these features is called: ``fd`` is ``fid``, or ``fd_`` and the name."""
        return STANDARD[figure] if self.published else f"{figure}_{self.name}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features and logits of images.

        Args:
            images: (B, 3, H, W) uint8.

        Returns:
            (B, D), and (B, K) or None; float32 or as precise as the network, on the CPU.

        Raises:
            ValueError: the network gives another shape, or values that are not finite.
        """
        weight = next(self.network.parameters(), None)
        device = torch.device("cpu") if weight is None else weight.device
        found = self.network(images.to(device).float() / 255)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the network of '{self.name}' must give (B, D) for {len(images)} images, got {shape}")
        if not bool(found.isfinite().all()):
            raise ValueError(f"the network of '{self.name}' gives features that are not finite")
        logits = None if self.head is None else _precise(self.head(found))
        return _precise(found), logits

    def facts(self) -> dict[str, Any]:
        """Which network, for the report."""
        found = {"name": self.name, "published_inception": self.published, "weights_sha256": self.weights_sha256}
        return found if self.file is None else {**found, "file": self.file, "file_sha256": self.file_sha256}


def _precise(x: Tensor) -> Tensor:
    return x.to("cpu", torch.promote_types(x.dtype, torch.float32))


def read_inception(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Features:
    """Inception v3 in the form of FID, with weights from a file; nothing in the file is run.

    Where the file is the published one, figures are called ``fid``, ``kid``, ``is``, ``precision`` and ``recall``; with
    other weights they carry ``inception_`` and the first eight digits of the file's SHA-256.

    Args:
        path: of ``pt_inception-2015-12-05-6726825d.pth``, or a file with the same names and shapes.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such file; the message says where people find it.
        CheckpointError: a damaged or hostile file, or one of another network.
    """
    network = read_network(path).to(device)
    found = digest_of_file(Path(path))
    name = "inception" if found == PUBLISHED else f"inception_{found[:8]}"
    return Features(name, network, network.logits, os.fspath(path), found)


def read_features(name: str, network: nn.Module, path: str | os.PathLike[str]) -> Features:
    """A network of one's own, filled from a file; nothing in the file is run.

    Args:
        name: as in :class:`Features`.
        network: the architecture; its weights are replaced.
        path: a state dict, of ``torch.save`` or safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a damaged or hostile file, or one of another network.
    """
    fill(network, path)
    return Features(name, network.eval(), None, os.fspath(path), digest_of_file(Path(path)))
