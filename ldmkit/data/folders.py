"""Folders of pictures: of pictures alone, a folder per class, and pictures with a label map each.

Files and folders whose name begins with a dot are no part of a folder; links are followed. Any other file that is no
picture is refused, and not passed over, unless it matches one of the patterns to ``ignore``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from ldmkit.data.rows import Records

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
Where = str | os.PathLike[str]


def list_images(folder: Where, ignore: Sequence[str] = ()) -> tuple[Path, ...]:
    """The pictures in a folder and the folders in it, sorted by path: the same on every machine.

    Args:
        folder: where.
        ignore: patterns of file names that are passed over, as ``("*.txt",)``.

    Raises:
        ValueError: no such folder, no pictures in it, or other files; with how many files were found.
    """
    root = Path(folder)
    files = list_files(root)
    counted = [path for path in files if not any(fnmatch(path.name, pattern) for pattern in ignore)]
    others = [path for path in counted if path.suffix.lower() not in SUFFIXES]
    if others:
        raise ValueError(
            f"'{root}' has {len(files)} files, of which {len(others)} are no pictures ({', '.join(SUFFIXES)}): "
            f"'{others[0]}' for one. Move them away, or pass ignore=('*{others[0].suffix or others[0].name}',)"
        )
    if not counted:
        raise ValueError(f"'{root}' has no pictures ({', '.join(SUFFIXES)}); {len(files)} files were found in it")
    return tuple(counted)


def list_files(folder: Where) -> tuple[Path, ...]:
    """The files in a folder and the folders in it, sorted by path, without those that begin with a dot.

    Raises:
        ValueError: no such folder, or one in it that cannot be read.
    """
    root, found = Path(folder), []
    if not root.is_dir():
        raise ValueError(f"there is no folder '{root}'")
    for at, folders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(at) / name for name in names if not name.startswith(".")]
    return tuple(sorted(found))


def image_folder(folder: Where, channels: int = 3, ignore: Sequence[str] = ()) -> Records:
    """``target``: every picture in a folder and the folders in it.

    Args:
        folder: where.
        channels: C of the images.
        ignore: patterns of file names that are passed over.

    Raises:
        ValueError: as :func:`list_images`.
    """
    return Records([{"target": path} for path in list_images(folder, ignore)], channels=channels)


def class_folders(
    folder: Where, channels: int = 3, ignore: Sequence[str] = (), names: Sequence[str] | None = None
) -> Records:
    """``target`` and ``label``: a folder per class, numbered in the order of their names.

    Args:
        folder: what holds the classes' folders, and nothing else.
        channels: C of the images.
        ignore: patterns of file names that are passed over.
        names: the classes in the order in which they are numbered, each with its folder; None: sorted. A held-out
            folder is read with the names of the one that was trained on, so that equal classes have equal numbers.

    Raises:
        ValueError: no such folder, pictures beside the classes' folders, a class that ``names`` does not have, or a
            class without pictures.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"there is no folder '{root}'")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    order = tuple(found if names is None else names)
    beside = [path for path in list_images(root, ignore) if path.parent == root]
    if beside:
        raise ValueError(
            f"'{root}' is to hold a folder per class, and {len(beside)} pictures lie beside: '{beside[0]}'"
        )
    if set(order) != set(found) or len(set(order)) != len(order):
        raise ValueError(
            f"'{root}' has {len(found)} folders, and names= has {len(order)}; not in both or twice: "
            f"{sorted(set(order) ^ set(found))[:5]}"
        )
    rows = [
        {"target": path, "label": label}
        for label, name in enumerate(order)
        for path in list_images(root / name, ignore)
    ]
    return Records(rows, channels=channels, names=order)


def label_map_folders(
    images: Where,
    maps: Where,
    classes: int | None = None,
    palette: tuple[tuple[int, int, int], ...] | None = None,
    relabel: Mapping[int, int] | None = None,
    channels: int = 3,
) -> Records:
    """``target`` and ``segmentation``: two folders in which a picture and its label map have one name.

    ``a/1.jpg`` of the first belongs to ``a/1.png`` of the second. Of a map with a palette the indices are read.

    Args:
        images: the folder of pictures.
        maps: the folder of label maps.
        classes: K; None: labels are not checked.
        palette: the colour of each class, for maps in colours.
        relabel: labels to be replaced, as ``{255: K - 1}`` for pixels that nobody labelled.
        channels: C of the images.

    Raises:
        ValueError: a picture without a map, a map without a picture, or two files of one name.
    """
    pictures, labelled = _by_stem(images), _by_stem(maps)
    alone = sorted(pictures.keys() ^ labelled.keys())
    if alone:
        lone = "label map" if alone[0] in pictures else "picture"
        raise ValueError(
            f"'{images}' has {len(pictures)} pictures and '{maps}' {len(labelled)} label maps, of which {len(alone)} "
            f"have no partner: '{alone[0]}' has no {lone}, for one"
        )
    rows = [{"target": path, "segmentation": labelled[stem]} for stem, path in pictures.items()]
    return Records(rows, channels=channels, classes=classes, palette=palette, relabel=relabel or {})


def _unreadable(error: OSError) -> None:
    raise ValueError(f"the folder '{error.filename}' cannot be read: {error.strerror}") from error


def _by_stem(folder: Where) -> dict[str, Path]:
    """The pictures of a folder by their path in it, without the suffix."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"'{found[stem]}' and '{path}' have one name: which of them is meant?")
        found[stem] = path
    return found
