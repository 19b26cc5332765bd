"""Zip archives that torch did not write, or that were damaged after it did."""

import struct
import zipfile
from functools import partial

from .programs import GOOD, good_archive, program, tensor, zipped

PICKLE = program(tensor())


def compressed(path):
    """A storage of 64 MiB in a few bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program(tensor((2**24,), (1,), numel=2**24)))
        archive.writestr("archive/data/0", bytes(2**26))


def named(path, further):
    """An archive with one more entry."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("archive/data.pkl", "archive/data/0", further):
            archive.writestr(name, PICKLE if name.endswith("data.pkl") else GOOD["data/0"])


def twice(path, name):
    """An archive with one entry two times, which zipfile writes under protest: renamed afterwards."""
    zipped(path, PICKLE, **{name[:-1] + "_": PICKLE})
    path.write_bytes(path.read_bytes().replace(f"archive/{name[:-1]}_".encode(), f"archive/{name}".encode()))


def changed(path, change):
    """A good archive whose bytes were changed."""
    path.write_bytes(change(good_archive()))


def directory_of(data, length):
    """The archive, whose end claims a directory of that length."""
    return data[:-10] + struct.pack("<I", length) + data[-6:]


def flag_encrypted(data):
    """The archive, whose first entry claims to be encrypted."""
    place = data.index(b"PK\x01\x02") + 8
    return data[:place] + b"\x01\x08" + data[place + 2 :]


def moved(data):
    """The archive, whose first entry claims to begin elsewhere."""
    place = data.index(b"PK\x01\x02") + 42
    return data[:place] + struct.pack("<I", 5) + data[place + 4 :]


def flipped(data):
    """The archive with one byte of its numbers changed."""
    place = data.index(bytes(48)) + 20
    return data[:place] + b"\x01" + data[place + 1 :]


def crowded(path):
    """An archive with 80,000 entries, in a directory just short enough to be read."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *[0] * 7, 1, *[0] * 6) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 80_000 * len(entry), 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * 80_000 + end)


ARCHIVES = {
    "archive with 80,000 entries": crowded,
    "archive with a compressed storage": compressed,
    "archive with a path out of it": partial(named, further="../../outside"),
    "archive with a path out of its folder": partial(named, further="archive/data/../../outside"),
    "archive with an absolute path": partial(named, further="/etc/outside"),
    "archive with a drive": partial(named, further="C:\\outside\\data\\0"),
    "archive with two folders": partial(named, further="other/data/0"),
    "archive with a program": partial(named, further="archive/code/__torch__.py"),
    "archive with a storage called otherwise": partial(named, further="archive/data/0x0"),
    "archive with its pickle twice": partial(twice, name="data.pkl"),
    "archive with a storage twice": partial(twice, name="data/0"),
    "archive without a pickle": lambda path: zipfile.ZipFile(path, "w").writestr("archive/data/0", GOOD["data/0"]),
    "archive of another byte order": partial(zipped, pickle=PICKLE, byteorder=b"big"),
    "archive of documents": lambda path: zipfile.ZipFile(path, "w").writestr("word/document.xml", "text"),
    "archive without an entry": lambda path: path.write_bytes(b"PK\x03\x04" + b"PK\x05\x06" + bytes(18)),
    "archive cut in the middle": partial(changed, change=lambda data: data[: len(data) // 2]),
    "archive cut behind its first bytes": partial(changed, change=lambda data: data[:10]),
    "archive with bytes behind it": partial(changed, change=lambda data: data + bytes(100)),
    "archive with a directory of 2 GiB": partial(changed, change=lambda data: directory_of(data, 2**31)),
    "archive with a directory of nothing": partial(changed, change=lambda data: directory_of(data, 3)),
    "archive with an encrypted entry": partial(changed, change=flag_encrypted),
    "archive with an entry elsewhere": partial(changed, change=moved),
    "archive with two names for an entry": partial(
        changed, change=lambda data: data.replace(b"archive/data/0", b"archive/data/1", 1)
    ),
    "archive with a flipped byte": partial(changed, change=flipped),
}
