"""The files of one model folder: JSON and tensors, and nothing outside the folder.

Names inside a file (the shards of an index) must be plain names, and what a link points to must lie in the folder, or
in the ``blobs`` beside it where the folder is a snapshot in the cache of huggingface_hub. Everything that cannot be
read is one :class:`~ldmkit.CheckpointError`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from ldmkit.errors import CheckpointError
from ldmkit.weights.reading import Contents, opened

LARGEST_JSON = 16 * 2**20
"""Bytes of one JSON file; the index of the largest published model takes a few hundred thousand."""

STEMS = (
    ("diffusion_pytorch_model", "safetensors"),
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
    ("pytorch_model", "bin"),
)
"""How the weights of a component may be called, by diffusers and by transformers; the first that is there is read."""

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


@dataclass(frozen=True)
class Folder:
    """A model folder.

    Args:
        root: where it is.
        variant: the middle of the weights' file names, such as ``fp16`` in ``model.fp16.safetensors``; None: plain.
    """

    root: Path
    variant: str | None = None

    def path(self, *parts: str) -> Path:
        """A regular file of the folder.

        Raises:
            CheckpointError: there is none, or it leads out of the folder.
        """
        path = self.root.joinpath(*parts)
        if not path.is_file():
            raise CheckpointError(f"{self.root} has no file '{'/'.join(parts)}'")
        real, root = path.resolve(strict=True), self.root.resolve(strict=True)
        homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
        if not any(real.is_relative_to(home) for home in homes):
            raise CheckpointError(f"{path} is a link that leads out of the folder, to {real}: copy the file instead")
        return path

    def json(self, *parts: str) -> dict[str, Any]:
        """The mapping in a JSON file.

        Raises:
            CheckpointError: no such file, too large, or no mapping.
        """
        path = self.path(*parts)
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise CheckpointError(f"{path} takes {size:,} bytes; a configuration takes at most {LARGEST_JSON:,}")
        try:
            data = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise CheckpointError(f"{path} is not readable JSON: {error}") from error
        if not isinstance(data, dict):
            raise CheckpointError(f"{path} holds a {type(data).__name__}; a configuration is a mapping")
        return data

    def shapes(self, component: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of a component; no tensor is read."""
        return {name: file.shapes[name] for file, name in self._each(component)}

    def tensors(self, component: str) -> dict[str, Tensor]:
        """Name -> tensor of a component, on the CPU, in memory of its own and as precise as the file.

        Raises:
            CheckpointError: there are no weights, a file is damaged, or two files hold the same tensor.
        """
        return {name: file.read(name) for file, name in self._each(component)}

    def _each(self, component: str) -> Iterator[tuple[Contents, str]]:
        """(open file, name) of every tensor of a component."""
        seen: set[str] = set()
        for path in self._weights(component):
            with opened(path) as file:
                if twice := sorted(seen.intersection(file.tensors)):
                    raise CheckpointError(
                        f"{path} holds tensors that another file of '{component}' has too: {twice[:5]}"
                    )
                seen.update(file.tensors)
                yield from ((file, name) for name in file.tensors)

    def _weights(self, component: str) -> list[Path]:
        """The files that hold a component's weights: one, or the shards of an index."""
        middle = "" if self.variant is None else f".{self.variant}"
        for stem, kind in STEMS:
            name, index = f"{stem}{middle}.{kind}", f"{stem}.{kind}.index{middle}.json"
            if (self.root / component / name).exists():
                return [self.path(component, name)]
            if (self.root / component / index).exists():
                return [self.path(component, shard) for shard in self._shards(component, index)]
        present = sorted(
            path.name for path in (self.root / component).glob("*") if path.suffix in (".bin", ".safetensors")
        )
        wanted = " or ".join(f"'{component}/{stem}{middle}.{kind}'" for stem, kind in STEMS)
        raise CheckpointError(f"{self.root} has no weights for '{component}': expected {wanted}; found {present}")

    def _shards(self, component: str, index: str) -> list[str]:
        listed = self.json(component, index).get("weight_map")
        names = set(listed.values()) if isinstance(listed, dict) and all(map(_is_text, listed.values())) else set()
        if not names:
            raise CheckpointError(f"{component}/{index} has no 'weight_map' from tensors to files")
        if wrong := sorted(name for name in names if name in ("", ".", "..") or name != os.path.basename(name)):
            raise CheckpointError(
                f"{component}/{index} names files that are not plain names in its folder: {wrong[:3]}"
            )
        return sorted(names)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\\" not in value and "\0" not in value


def found(
    place: str | os.PathLike[str], revision: str | None, variant: str | None, components: tuple[str, ...]
) -> Folder:
    """The folder of that name, or else the snapshot of that hub id.

    Args:
        place: a folder, or ``owner/name``.
        revision: branch, tag or commit on the hub; only for an id.
        variant: see :class:`Folder`.
        components: the folders that may be needed; nothing else is downloaded.

    Raises:
        FileNotFoundError: neither a folder nor an id.
        ValueError: a revision for a folder.
        ImportError: an id, and huggingface_hub is not installed.
    """
    path = Path(place)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{path} is a folder here, which has no revision: leave revision={revision!r} out")
        return Folder(path, variant)
    if not isinstance(place, str) or not HUB_ID.fullmatch(place):
        raise FileNotFoundError(f"there is no folder {place}, and it is no hub id of the form owner/name")
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"'{place}' is no folder; to download it from the hub: pip install huggingface_hub"
        ) from error
    patterns = ["model_index.json", *(f"{name}/{file}" for name in components for file in _wanted(variant))]
    return Folder(Path(hub.snapshot_download(place, revision=revision, allow_patterns=patterns)), variant)


def _wanted(variant: str | None) -> list[str]:
    """What is downloaded of a component: its data, and its weights in one precision as safetensors."""
    middle = "" if variant is None else f".{variant}"
    stems = [stem for stem, kind in STEMS if kind == "safetensors"]
    weights = [f"{stem}{middle}{end}.safetensors" for stem in stems for end in ("", "-*-of-*")]
    return ["*.json", "*.txt", *weights]
