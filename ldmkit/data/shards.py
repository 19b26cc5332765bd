"""Shards: tar files in WebDataset's form, as rows by place.

    0001.jpg, 0001.txt, 0002.jpg, 0002.txt  ->  {"__key__": "0001", "jpg": picture, "txt": text}, ...

The members of a sample stand side by side and share their path up to the first dot of the file name. The heads of the
files are read once, and a sample is read where it lies; so shards have a length and an index as everything else, and
the order of a run decides who reads what: each sample once per epoch, whatever the number of processes and workers. Not
here: compressed archives and streams, in which nothing can be found by place.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ldmkit.data.folders import SUFFIXES, Where
from ldmkit.images import FORMATS, upright

Member = tuple[str, int, int]
"""(suffix, place of the first byte in the shard, bytes)."""


class Shards:
    """Samples out of tar files; :class:`~ldmkit.data.rows.Records` with ``columns`` makes records of them.

    A picture is decoded, ``txt`` becomes a string, ``cls`` an integer, ``json`` what it holds, anything else bytes.
    ``__key__`` is the sample's path.

    Args:
        paths: the tar files, not compressed.

    Raises:
        ValueError: no shards, a file that is no plain tar file, one without samples, or one in which a sample's name
            occurs twice. In ``[i]``: a member that is damaged; the message names shard and member.
    """

    def __init__(self, paths: Sequence[Where]) -> None:
        if isinstance(paths, str) or not paths:
            raise ValueError(f"shards are a list of tar files, at least one, got {paths!r:.80}")
        self.paths = tuple(Path(path) for path in paths)
        self._samples = [
            (shard, key, members) for shard, path in enumerate(self.paths) for key, members in _listed(path).items()
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """The sample of a place.

        Raises:
            IndexError: outside [0, len - 1].
            ValueError: a member is damaged.
        """
        if not 0 <= place < len(self):
            raise IndexError(f"samples 0 to {len(self) - 1}, got {place}")
        shard, key, members = self._samples[place]
        row: dict[str, Any] = {"__key__": key}
        # Opened anew for each sample: an open file that processes share has one position for all of them.
        with self.paths[shard].open("rb") as file:
            for suffix, first, size in members:
                file.seek(first)
                row[suffix] = decoded(suffix, file.read(size), f"'{self.paths[shard]}', member '{key}.{suffix}'")
        return row


def _listed(path: Path) -> dict[str, list[Member]]:
    """The members of each sample of a shard, in order."""
    samples: dict[str, list[Member]] = {}
    last = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = Path(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                stem, _, suffix = name.name.partition(".")
                key = (name.parent / stem).as_posix()
                if (key != last and key in samples) or any(suffix == known for known, _, _ in samples.get(key, [])):
                    raise ValueError(f"'{path}' has two samples '{key}', or its members do not stand side by side")
                samples.setdefault(key, []).append((suffix, member.offset_data, member.size))
                last = key
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"'{path}' cannot be read as a tar file that is not compressed: {error}") from error
    if not samples:
        raise ValueError(f"'{path}' has no samples")
    return samples


def decoded(suffix: str, content: bytes, what: str) -> Any:  # noqa: ANN401
    """The picture, text or data that a member holds; its bytes where :func:`readable` says no.

    Args:
        suffix: of the member's name, from the first dot on; the part after its last dot decides.
        content: of the member.
        what: how messages call it.

    Raises:
        ValueError: it is damaged.
    """
    last = suffix.lower().rpartition(".")[2]
    if not readable(suffix):
        return content
    try:
        return READERS.get(last, _picture)(content)
    except (ValueError, OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def readable(suffix: str) -> bool:
    """Whether members of this suffix are decoded: pictures, texts, numbers of classes and JSON, none of it code."""
    last = suffix.lower().rpartition(".")[2]
    return f".{last}" in SUFFIXES or last in READERS


def _picture(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return upright(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"{len(content)} bytes that are no picture of {', '.join(FORMATS)}") from error


READERS: Mapping[str, Callable[[bytes], Any]] = {
    "txt": lambda content: content.decode("utf-8").strip(),
    "text": lambda content: content.decode("utf-8").strip(),
    "cls": int,
    "json": json.loads,
}
