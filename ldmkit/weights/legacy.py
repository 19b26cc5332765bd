"""What ``torch.save`` wrote before version 1.6: four pickles, the names of the storages, then their numbers.

magic number, version of the protocol, sizes of types, the checkpoint, [key, ...]
for each key: the number of elements (8 bytes), then the elements
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from io import BufferedReader

from ldmkit.errors import CheckpointError
from ldmkit.weights import pickles
from ldmkit.weights.pickles import Storage
from ldmkit.weights.stored import Read, Run, dtype_of, from_pickle

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = 1001


def read(file: BufferedReader) -> Read:
    """What the file holds.

    Raises:
        CheckpointError: another protocol or byte order, or a damaged file.
    """
    # Pickles say their length only by ending: a window of the file bounds what a hostile one makes us read.
    window = io.BytesIO(file.read(pickles.MAX_BYTES))
    window.seek(len(MAGIC))
    protocol, system, checkpoint, keys = (pickles.run(window) for _ in range(4))
    _check_system(protocol.value, system.value)
    runs = _runs(file, window.tell(), keys.value, checkpoint.storages)
    return from_pickle(checkpoint.value, lambda storage: runs[storage.key])


def _check_system(protocol: object, system: object) -> None:
    if protocol != PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was written in another protocol or byte order: save it as safetensors there")


def _runs(file: BufferedReader, start: int, keys: object, storages: Mapping[str, Storage]) -> dict[str, Run]:
    """Where the numbers of each storage lie: one behind the other, in the order of the keys."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) != len(keys):
        raise CheckpointError("the names of its storages are damaged")
    if different := storages.keys() ^ {*keys}:
        raise CheckpointError(f"its pickle and its list of storages differ in {len(different)} of them")
    end, runs = file.seek(0, io.SEEK_END), {}
    for key in keys:
        numel, nbytes = storages[key].numel, storages[key].numel * dtype_of(storages[key].kind).itemsize
        file.seek(start)
        found = int.from_bytes(file.read(8), "little", signed=True)
        if found != numel:
            raise CheckpointError(f"the storage '{key:.60}' has {found:,} elements where its pickle says {numel:,}")
        if start + 8 + nbytes > end:
            raise CheckpointError(
                f"it is cut off: the storage '{key:.60}' ends {start + 8 + nbytes - end:,} bytes later"
            )
        runs[key] = Run(start + 8, nbytes, None)
        start += 8 + nbytes
    return runs
