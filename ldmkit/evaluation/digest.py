"""SHA-256 of weights: which file, or which network, a number was computed with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn


def digest_of(module: object) -> str:
    """SHA-256 over the names, types, shapes and bytes of a module's parameters and buffers, in the order of names.

    The same weights have the same digest on every device; what is no module has that of no weights.
    """
    found = hashlib.sha256()
    named = (
        sorted([*module.named_parameters(), *module.named_buffers()], key=lambda one: one[0])
        if isinstance(module, nn.Module)
        else []
    )
    for name, tensor in named:
        flat = tensor.detach().cpu().contiguous()
        found.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        found.update(flat.flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
