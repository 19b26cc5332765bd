"""Safetensors files whose header lies."""

import json
import struct
from functools import partial

WEIGHT = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}


def flat(path, header, data=bytes(48), length=None):
    """A file with a header as mapping, text or bytes."""
    text = json.dumps(header) if isinstance(header, dict) else header
    written = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(struct.pack("<Q", len(written) if length is None else length) + written + data)


def one(**changes):
    """A file of one tensor whose entry was changed."""
    return partial(flat, header={"weight": WEIGHT | changes})


def many(count):
    """A header with so many empty tensors."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return "{" + ",".join(f'"t{n}":{entry}' for n in range(count)) + "}"


TWO = '{{"weight": {0}, "weight": {0}}}'.format(json.dumps(WEIGHT))
HEADERS = {
    "header of 2^63 bytes": partial(flat, header={"weight": WEIGHT}, length=2**63),
    "header longer than the file": partial(flat, header={"weight": WEIGHT}, length=10**6),
    "header of 17 MB": partial(flat, header="{" + " " * (17 * 10**6) + "}"),
    "header that is no JSON": partial(flat, header="{weight}"),
    "header that is no text": partial(flat, header=b"{\xff\xfe}"),
    "header nested without end": partial(flat, header='{"weight":' + "[" * 100_000),
    "header of a million brackets": partial(flat, header='{"weight":[' + "[]," * 10**6 + "[]]}"),
    "header of 200,000 tensors": partial(flat, header=many(200_000), data=b""),
    "header with a name twice": partial(flat, header=TWO),
    "header with metadata that are numbers": partial(flat, header={"__metadata__": {"a": 1}, "weight": WEIGHT}),
    "header with an entry that is a list": partial(flat, header={"weight": [1]}),
    "header with a further field": one(path="../other"),
    "header with an unknown kind": one(dtype="F4"),
    "header with a side below zero": one(shape=[-3, -4]),
    "header with a side that is true": one(shape=[True, 12]),
    "header with a side that is a fraction": one(shape=[3.0, 4]),
    "header with sides beyond 64 bits": one(shape=[2**80]),
    "header with sides whose product wraps": one(shape=[2**32, 2**32]),
    "header with a shape that does not fit": one(shape=[3, 5]),
    "header with a place below zero": one(data_offsets=[-48, 0]),
    "header with a place behind the file": one(data_offsets=[4800, 4848]),
    "header with a hole": one(data_offsets=[4, 52]),
    "header with tensors that overlap": partial(flat, header={"a": WEIGHT, "b": WEIGHT}, data=bytes(96)),
    "header without all bytes": partial(flat, header={"weight": WEIGHT}, data=bytes(52)),
    "header with too few bytes": partial(flat, header={"weight": WEIGHT}, data=bytes(40)),
}
