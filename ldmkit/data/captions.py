"""Pictures with captions: in a file beside each, or in one table for all.

A picture with several captions is as many records. Captions are kept as they are but for white space at their ends;
one that says "left" is wrong of a mirrored picture, and only its author can know.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldmkit.data.folders import Where, list_files, list_images
from ldmkit.data.rows import Records


def sidecar_captions(folder: Where, channels: int = 3) -> Records:
    """``target`` and ``prompt``: the caption of ``a.jpg`` is the text of ``a.txt`` beside it.

    Args:
        folder: where; folders in it count.
        channels: C of the images.

    Raises:
        ValueError: a picture without a caption, a caption without a picture, an empty one or one that is not UTF-8.
    """
    paths = list_images(folder, ignore=("*.txt",))
    texts = {path for path in list_files(folder) if path.suffix == ".txt"}
    wanted = {path: path.with_suffix(".txt") for path in paths}
    missing = [path for path, text in wanted.items() if text not in texts]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} pictures in '{folder}' have no caption: '{missing[0]}' needs "
            f"'{missing[0].with_suffix('.txt').name}' beside it"
        )
    alone = sorted(texts - set(wanted.values()))
    if alone:
        raise ValueError(f"{len(alone)} captions in '{folder}' have no picture: '{alone[0]}', for one; move them away")
    rows = [{"target": path, "prompt": _said(_text(text), f"'{text}'")} for path, text in wanted.items()]
    return Records(rows, channels=channels)


def caption_table(
    table: Where, folder: Where | None = None, file: str = "file_name", text: str = "text", channels: int = 3
) -> Records:
    """``target`` and ``prompt``: a line of a table is a picture's name and its caption.

    Args:
        table: a ``.jsonl`` file with an object on each line, or a ``.csv`` or ``.tsv`` file with a head line; in UTF-8.
        folder: where the pictures are; None: where the table is.
        file: the column of the pictures' names.
        text: the column of the captions.
        channels: C of the images.

    Raises:
        ValueError: another kind of file, or a line that cannot be read, lacks a column, has an empty caption or names
            a picture that is not there; the message names file and line.
    """
    path = Path(table)
    root = path.parent if folder is None else Path(folder)
    rows = []
    for line, entry in _entries(path):
        what = f"'{path}', line {line}"
        missing = [name for name in (file, text) if not isinstance(entry.get(name), str)]
        if missing:
            raise ValueError(f"{what} has no text in column {missing}; it has {[name for name in entry if name]}")
        picture = root / entry[file]
        if not picture.is_file():
            raise ValueError(
                f"{what} names '{entry[file]}', and there is no file '{picture}': put it there, or take the line out"
            )
        rows.append({"target": picture, "prompt": _said(entry[text], what)})
    if not rows:
        raise ValueError(f"'{path}' has no lines")
    return Records(rows, channels=channels)


def _entries(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the line, its columns)."""
    readers = {".jsonl": _json_lines, ".csv": _table_lines, ".tsv": _table_lines}
    if path.suffix.lower() not in readers:
        raise ValueError(f"captions are read from {', '.join(readers)}, got '{path}'")
    yield from readers[path.suffix.lower()](path, _text(path))


def _json_lines(path: Path, content: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Not splitlines(): JSON may hold the other characters that end a line of Unicode text.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"'{path}', line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"'{path}', line {number} must be an object in braces, got {line:.60}")
        yield number, entry


def _table_lines(path: Path, content: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(content), delimiter=delimiter, strict=True)
    try:
        for entry in reader:
            if None in entry:
                raise ValueError(
                    f"'{path}', line {reader.line_num} has more fields than the head line: put text with "
                    "commas in quotes"
                )
            yield reader.line_num, entry
    except csv.Error as error:
        raise ValueError(f"'{path}', line {reader.line_num} cannot be read: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8: {error}; save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error}") from error


def _said(caption: str, what: str) -> str:
    if not caption.strip():
        raise ValueError(f"{what}: the caption is empty; drop the picture, or say something of it")
    return caption.strip()
