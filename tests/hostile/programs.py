"""Pickles that would run something, take everything, or describe tensors that cannot be."""

import io
import struct
import zipfile
from functools import partial

GOOD = {"data/0": bytes(48)}
MAGIC = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    + b"\x80\x02M\xe9\x03."
    + b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."
)
HARM = "touch executed"


def text(value):
    """A string, as an instruction."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    """A whole number of any size, as an instruction."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(*values):
    """A tuple of whole numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", numel=12, kind="torch\nFloatStorage", place="cpu"):
    """A storage."""
    return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text(place) + number(numel) + b"tQ"


def tensor(shape=(3, 4), stride=(4, 1), offset=0, numel=12, key="0", sides=None):
    """A tensor."""
    shape = numbers(*shape) if sides is None else sides
    described = storage(key, numel) + number(offset) + shape + numbers(*stride) + b"\x89" + b"}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + described + b"tR"


def program(*entries, **further):
    """A state dict of named instructions."""
    items = {f"weight{n}": entry for n, entry in enumerate(entries)} | further
    return b"\x80\x02}" + text("state_dict") + b"}" + b"".join(text(k) + v + b"s" for k, v in items.items()) + b"s."


def zipped(path, pickle, entries=None, **further):
    """An archive as ``torch.save`` writes one."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": pickle, **(GOOD if entries is None else entries), **further}.items():
            archive.writestr(f"archive/{name}", data)


def harmful(opcodes):
    """A state dict with instructions that run a shell command when they are taken at their word."""
    return program(tensor(), harm=opcodes)


BOMB = b")" + b"".join(b"0h\x00h\x00\x86q\x00" if n else b"q\x00h\x00\x86q\x00" for n in range(60))
CALLS = {
    "calls os.system": b"cposix\nsystem\n" + text(HARM) + b"\x85R",
    "calls os.system by NEWOBJ": b"cposix\nsystem\n" + text(HARM) + b"\x85\x81",
    "calls os.system by INST": b"(" + text(HARM) + b"iposix\nsystem\n",
    "calls os.system by OBJ": b"(cposix\nsystem\n" + text(HARM) + b"o",
    "calls eval by a name on the stack": text("builtins") + text("eval") + b"\x93" + text("1") + b"\x85R",
    "names os.system and calls nothing": b"cposix\nsystem\n",
    "imports a module": b"cthis\ns\n",
    "loads a nested pickle": b"ctorch.storage\n_load_from_bytes\n" + text("x") + b"\x85R",
    "reaches through an attribute": b"c__builtin__\ngetattr\n" + text("x") + b"\x85R",
    "asks for an extension": b"\x82\x01",
    "asks for a persistent id in text": b"Psomething\n",
    "calls a tensor": tensor() + b")R",
    "sets the state of a name": b"ctorch\nFloatStorage\n}b",
}
TENSORS = {
    "tensor larger than its storage": tensor((100, 100), (100, 1)),
    "tensor behind its storage": tensor(offset=1),
    "tensor of 3.6 TiB in one element": tensor((10**6, 10**6), (0, 0)),
    "tensor with strides that skip": tensor((3, 2), (4, 2)),
    "tensor with strides that repeat": tensor((3, 4), (0, 1)),
    "tensor with a negative side": tensor((-3, -4)),
    "tensor with sides beyond 64 bits": tensor((2**70, 4)),
    "tensor with sides whose product wraps": tensor((2**32, 2**32), (2**32, 1)),
    "tensor with more strides than sides": tensor((3, 4), (4, 1, 1)),
    "tensor with a thousand sides": tensor((1,) * 1000, (1,) * 1000),
    "tensor whose shape unfolds without end": tensor(sides=BOMB + b"\x85", stride=(1,)),
    "tensor in a storage that is not there": tensor(key="7"),
    "tensor in a storage with a path": tensor(key="../../../etc/passwd"),
    "storage shorter than its entry": tensor((3,), (1,), numel=3),
    "storage longer than its entry": tensor(numel=10**9),
    "storage of an unknown kind": storage(kind="torch\nQInt8Storage"),
    "parameter without a tensor": b"ctorch._utils\n_rebuild_parameter\n)R",
    "storage in place of a tensor": storage(),
    "name in place of a tensor": b"ctorch\nFloatStorage\n",
    "dictionary in place of a tensor": b"}",
}
SHAPES = {
    "pickle of a list": b"\x80\x02].",
    "pickle of one tensor": b"\x80\x02" + tensor() + b".",
    "pickle of an empty dictionary": b"\x80\x02}.",
    "pickle whose state dict is a list": b"\x80\x02}" + text("state_dict") + b"]s.",
    "pickle without an end": b"\x80\x02}" + text("state_dict"),
    "pickle that takes from an empty stack": b"\x80\x02s.",
    "pickle with an unmatched mark": b"\x80\x02t.",
    "pickle with two values": b"\x80\x02}}.",
    "pickle that recalls nothing": b"\x80\x02h\x05.",
    "pickle of random bytes": bytes(range(255, 0, -1)),
    "pickle with a string of 4 EiB": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "pickle with a memo of 4 billion places": b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".",
    "pickle with a key that hashes without end": b"\x80\x02}" + BOMB + b"Ns.",
    "pickle with keys that collide": b"\x80\x02}("
    + b"".join(number(n * (2**61 - 1)) + b"N" for n in range(1, 20000))
    + b"u.",
    "pickle with two million instructions": b"\x80\x02" + b"}0" * 10**6 + b".",
    "pickle nested a million deep": b"\x80\x02)" + b"\x85" * 10**6 + b".",
    "pickle of half a million dictionaries": b"\x80\x04(" + b"}\x94" * 490_000 + b"l.",
    "pickle of 17 MB": b"\x80\x02" + b"N0" * (17 * 2**19) + b".",
}
PROGRAMS = {
    **{name: partial(zipped, pickle=harmful(opcodes)) for name, opcodes in CALLS.items()},
    **{name: partial(zipped, pickle=program(opcodes)) for name, opcodes in TENSORS.items()},
    **{name: partial(zipped, pickle=pickle) for name, pickle in SHAPES.items()},
    "two kinds for one storage": partial(
        zipped, pickle=program(tensor(), tensor().replace(b"FloatStorage", b"IntStorage"))
    ),
}


KEYS = b"\x80\x02]" + text("0") + b"a."
NUMBERS = struct.pack("<q", 12) + bytes(48)


def legacy(path, pickle=None, keys=KEYS, numbers=NUMBERS, head=MAGIC):
    """A file as ``torch.save`` wrote before version 1.6."""
    path.write_bytes(head + (program(tensor()) if pickle is None else pickle) + keys + numbers)


LEGACY = {
    "old format calls os.system": partial(legacy, pickle=harmful(CALLS["calls os.system"])),
    "old format of another protocol": partial(legacy, head=MAGIC.replace(b"M\xe9\x03", b"M\xe8\x03")),
    "old format of another byte order": partial(legacy, head=MAGIC.replace(b"\x88s.", b"\x89s.")),
    "old format cut off in its numbers": partial(legacy, numbers=struct.pack("<q", 12) + bytes(47)),
    "old format cut off in its pickle": partial(legacy, pickle=b"\x80\x02}", keys=b"", numbers=b""),
    "old format with another number of elements": partial(legacy, numbers=struct.pack("<q", 13) + bytes(52)),
    "old format with a negative number": partial(legacy, numbers=struct.pack("<q", -1) + bytes(48)),
    "old format without its storage": partial(legacy, keys=b"\x80\x02]."),
    "old format with a storage twice": partial(legacy, keys=b"\x80\x02](" + text("0") * 2 + b"e."),
    "old format with a storage too many": partial(legacy, keys=b"\x80\x02](" + text("0") + text("1") + b"e."),
    "old format of its magic number alone": partial(legacy, head=MAGIC[:15], pickle=b"", keys=b"", numbers=b""),
}


def good_archive():
    """The bytes of an archive that can be read."""
    stream = io.BytesIO()
    zipped(stream, program(tensor()))
    return stream.getvalue()
