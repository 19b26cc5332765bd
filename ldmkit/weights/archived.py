"""The zip archives that ``torch.save`` writes: one pickle, one entry per storage, nothing compressed.

The directory of the archive is checked before its pickle is looked at: the entries have the names that torch gives,
once each, are stored as they are, and lie inside the file.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections import Counter
from io import BufferedReader
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from ldmkit.errors import CheckpointError
from ldmkit.weights import pickles
from ldmkit.weights.pickles import Storage
from ldmkit.weights.stored import Read, Run, dtype_of, from_pickle

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY = 2**22
"""The longest directory that is read, in bytes: some 50,000 entries."""

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = re.compile(
    r"(?P<root>[^/\\]+)/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id)",
    re.ASCII,
)


def read(file: BufferedReader) -> Read:
    """What the archive holds.

    Raises:
        CheckpointError: an archive that torch did not write, or a damaged one.
    """
    _check_directory_size(file)
    try:
        with ZipFile(file) as archive:
            entries = _entries(archive)
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"its zip archive is damaged: {error!s:.200}") from error
    if "byteorder" in entries and _bytes(file, entries["byteorder"], 16) != b"little":
        raise CheckpointError("it was written on a machine of another byte order: save it as safetensors there")
    if "data.pkl" not in entries:
        raise CheckpointError("its zip archive holds no pickle: torch.save did not write it")
    stream = io.BytesIO(_bytes(file, entries["data.pkl"], pickles.MAX_BYTES))
    runs: dict[str, Run] = {}
    return from_pickle(pickles.run(stream).value, lambda storage: _located(file, entries, runs, storage))


def _check_directory_size(file: BufferedReader) -> None:
    """Refuse an archive whose list of entries alone would fill the memory, before it is read."""
    size = file.seek(0, io.SEEK_END)
    if size < _END.size:
        raise CheckpointError("its zip archive is cut off")
    file.seek(size - _END.size)
    magic, *_, length, start, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise CheckpointError("its zip archive is cut off, or ends in something else than its directory")
    if 0xFFFFFFFF in (length, start) and size >= _END.size + _LOCATOR_64.size:
        file.seek(size - _END.size - _LOCATOR_64.size)
        magic, _, place, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        file.seek(min(place, size))
        record = file.read(_END_64.size)
        if magic != b"PK\x06\x07" or len(record) < _END_64.size or not record.startswith(b"PK\x06\x06"):
            raise CheckpointError("the directory of its zip archive is damaged")
        length = _END_64.unpack(record)[-2]
    if length > MAX_DIRECTORY:
        raise CheckpointError(f"the directory of its zip archive has {length:,} bytes, more than {MAX_DIRECTORY:,}")
    file.seek(0)


def _entries(archive: ZipFile) -> dict[str, ZipInfo]:
    """Name without the root folder -> entry."""
    names = Counter(entry.filename for entry in archive.infolist())
    if names and names.most_common(1)[0][1] > 1:
        raise CheckpointError(f"its zip archive holds '{names.most_common(1)[0][0]:.60}' more than once")
    roots, entries = set(), {}
    for entry in archive.infolist():
        found = _ENTRY.fullmatch(entry.filename)
        if found is None or entry.filename.startswith(("./", "../")):
            program = "/code/" in entry.filename or entry.filename.endswith("constants.pkl")
            what = "a TorchScript program" if program else "something else than a checkpoint of torch.save"
            raise CheckpointError(f"its zip archive holds '{entry.filename:.60}': it is {what}")
        if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(
                f"the entry '{entry.filename:.60}' of its zip archive is compressed, which torch never does"
            )
        if entry.flag_bits & 1:
            raise CheckpointError(f"the entry '{entry.filename:.60}' of its zip archive is encrypted")
        roots.add(found["root"])
        entries[entry.filename.removeprefix(f"{found['root']}/")] = entry
    if len(roots) > 1:
        raise CheckpointError(f"its zip archive holds {len(roots)} folders in place of one")
    return entries


def _located(file: BufferedReader, entries: dict[str, ZipInfo], runs: dict[str, Run], storage: Storage) -> Run:
    """Where a storage lies; its entry must be exactly as long as the pickle says."""
    name = f"data/{storage.key}"
    if name not in entries:
        raise CheckpointError(f"its pickle names the storage '{storage.key:.60}', which its zip archive does not hold")
    entry, nbytes = entries[name], storage.numel * dtype_of(storage.kind).itemsize
    if entry.file_size != nbytes:
        raise CheckpointError(f"the entry '{name:.60}' has {entry.file_size:,} bytes where its pickle says {nbytes:,}")
    if name not in runs:
        runs[name] = Run(_payload(file, entry), nbytes, entry.CRC)
    return runs[name]


def _payload(file: BufferedReader, entry: ZipInfo) -> int:
    """The first byte of an entry's contents."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(MAGIC):
        raise CheckpointError(f"the entry '{entry.filename:.60}' of its zip archive is not where its directory says")
    *_, name, extra = _LOCAL.unpack(header)
    if file.read(name) != entry.filename.encode():
        raise CheckpointError(f"the entry '{entry.filename:.60}' of its zip archive has another name in its own header")
    start = entry.header_offset + _LOCAL.size + name + extra
    if start + entry.file_size > file.seek(0, io.SEEK_END):
        raise CheckpointError(f"the entry '{entry.filename:.60}' of its zip archive reaches beyond the end of the file")
    return int(start)


def _bytes(file: BufferedReader, entry: ZipInfo, most: int) -> bytes:
    if entry.file_size > most:
        raise CheckpointError(f"the entry '{entry.filename:.60}' has {entry.file_size:,} bytes, more than {most:,}")
    file.seek(_payload(file, entry))
    return file.read(entry.file_size)
