"""A model without its weights, and filling it from a file.

The skeleton is built on the CPU, where memory that nobody writes to costs nothing: random initialisation is left out,
and every tensor of the file is read into the very memory in which it stays. Nothing is left on ``meta``, so that
buffers which are computed and not stored are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldmkit.errors import CheckpointError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.weights.finite import is_finite
from ldmkit.weights.record import Digest
from ldmkit.weights.shards import Saved
from ldmkit.weights.tensor_file import DTYPES, Entry, TensorFile, memory

MAX_DATA = 16 * 2**20
"""Bytes of ``get_extra_state`` of one part: a vocabulary, a palette, class names."""


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build modules on their real device without drawing weights that a file overwrites.

    Filling a parameter at random does nothing, and neither does arithmetic in place on one. What is drawn all the same
    leaves torch's generator as it was.
    """
    with torch.random.fork_rng(devices=()), _NoInitialisation():
        yield


class _NoInitialisation(TorchFunctionMode):
    FILLS = frozenset(
        {
            # Initialisers that torch lets a mode see; of all others it sees what they do to the tensor.
            nn.init.uniform_,
            nn.init.normal_,
            nn.init.constant_,
            nn.init.kaiming_uniform_,
            Tensor.uniform_,
            Tensor.normal_,
            Tensor.zero_,
            Tensor.fill_,
            Tensor.copy_,
            Tensor.mul_,
            Tensor.div_,
            Tensor.add_,
            Tensor.sub_,
            Tensor.clamp_,
            Tensor.erfinv_,
        }
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        # Of parameters alone: an initialiser that draws until all is in bounds goes on with tensors of its own.
        return target if func in self.FILLS and isinstance(target, nn.Parameter) else func(*args, **kwargs)


def restored(saved: Saved, device: torch.device, check_content: bool) -> LatentDiffusion:
    """Build the model of open files and fill it.

    Args:
        saved: the files; every part of the recipe must be installed.
        device: where to put it; each tensor goes there on its own.
        check_content: compare the content hash too.

    Raises:
        CheckpointError: the recipe does not build, a tensor does not fit or is not finite, or the hash is another one.
    """
    try:
        with without_initialisation():
            model = compose(saved.record.recipe)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the recipe in {saved.path} does not build: {error}") from error
    expected = model.state_dict(keep_vars=True)
    check_fits(expected, saved)
    given, digests = _read(model, expected, saved, device, check_content)
    if check_content:
        check_hash(saved, digests)
    _hand_over(model, given, saved)
    _cast_buffers(model, saved)
    if left := [name for name, value in model.state_dict().items() if isinstance(value, Tensor) and value.is_meta]:
        raise CheckpointError(f"{saved.path} leaves {left[:5]} on 'meta', where a part was built: build it on the CPU")
    return model.to(device)


def is_data(name: str) -> bool:
    """Whether a tensor is what ``get_extra_state`` gave: bytes of a tokenizer, class names; of any length."""
    return name.rpartition(".")[2] == "_extra_state"


def check_hash(saved: Saved, digests: Mapping[str, Digest]) -> None:
    """Refuse files whose content is not what was written.

    Raises:
        CheckpointError: the hash is another one, or the file is too old to have one.
    """
    if not saved.record.content:
        raise CheckpointError(
            f"{saved.path} was written before files had a content hash: load it without verifying, and save it again"
        )
    if saved.record.hash_of(digests) != saved.record.content:
        raise CheckpointError(
            f"the content of {saved.path} is not what was written: it is damaged or was changed; get it again"
        )


def check_fits(expected: Mapping[str, Any], saved: Saved) -> None:
    """Account for every tensor by the headers alone.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape or type; the message lists them.
    """
    entries, tied = saved.entries(), saved.record.tied
    stored = {name: tied.get(name, name) for name in expected}
    wrong = [f"missing {stored[name]}" for name in expected if stored[name] not in entries]
    wrong += [f"unexpected {name}" for name in entries.keys() - set(stored.values())]
    wrong += [f"unexpected {name}" for name in tied if name not in expected]
    for name, value in expected.items():
        if stored[name] in entries:
            wrong += _misfit(name, value, entries[stored[name]][1])
    _refuse(wrong, saved.path)


def _misfit(name: str, value: Tensor, entry: Entry) -> list[str]:
    """What keeps an entry from being the value of a tensor."""
    if is_data(name):
        return [f"{name}: {entry.stop - entry.start} bytes of data"] if entry.stop - entry.start > MAX_DATA else []
    if entry.shape != tuple(value.shape):
        return [f"{name}: {entry.shape} in the file, {tuple(value.shape)} in the model"]
    if entry.dtype != value.dtype and not (entry.dtype.is_floating_point and value.is_floating_point()):
        return [f"{name}: {entry.dtype} in the file, {value.dtype} in the model"]
    return []


def _refuse(wrong: list[str], path: Path) -> None:
    if wrong:
        more = f", and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise CheckpointError(f"the tensors of {path} do not fit its recipe: {'; '.join(sorted(wrong)[:20])}{more}")


def _read(
    model: LatentDiffusion, expected: Mapping[str, Any], saved: Saved, device: torch.device, hashed: bool
) -> tuple[dict[str, Tensor], dict[str, Digest]]:
    """(what ``load_state_dict`` is to assign, digests): every tensor read, most of them into the model's own memory."""
    parameters = {id(value) for value in model.parameters()}
    own = parameters | {id(value) for value in model.buffers()}
    names: dict[str, list[str]] = {}
    for name in expected:
        names.setdefault(saved.record.tied.get(name, name), []).append(name)
    given: dict[str, Tensor] = {}
    digests: dict[str, Digest] = {}
    wrong = []
    for stored, (file, entry) in saved.entries().items():
        for value in {id(expected[name]): expected[name] for name in names[stored]}.values():
            ours = id(value) in own and not value.is_meta
            place = value if ours else torch.empty(entry.shape, dtype=entry.dtype)
            read = _filled(place, file, entry, device)
            given |= {name: place for name in names[stored] if expected[name] is value}
        if hashed:
            digests[stored] = Digest.of(entry.dtype, entry.shape, [memory(read)])
        if not is_finite(read, infinity=id(value) not in parameters):
            wrong.append(f"{stored}: not finite")
    _refuse(wrong, saved.path)
    return given, digests


def _filled(place: Tensor, file: TensorFile, entry: Entry, device: torch.device) -> Tensor:
    """Read a tensor into its place, or make what was read its value; gives what was read, on the CPU."""
    here = place.device.type == "cpu" and device.type == "cpu"
    if here and place.dtype == entry.dtype and place.is_contiguous():
        file.read(entry.name, into=place)
        return place
    read = torch.empty(entry.shape, dtype=entry.dtype)
    file.read(entry.name, into=read)
    if here and place.dtype == entry.dtype:
        with torch.no_grad():
            place.copy_(read)  # keeps its layout in memory
    else:
        place.data = read.to(device)
    return read


def _hand_over(model: LatentDiffusion, given: Mapping[str, Tensor], saved: Saved) -> None:
    """Let every module take what is its own: its tensors, which are in place, and its data."""
    try:
        model.load_state_dict(given, assign=True)
    except Exception as error:  # a component's set_extra_state may raise anything
        raise CheckpointError(f"a part cannot take what {saved.path} holds for it: {error}") from error


def _cast_buffers(model: LatentDiffusion, saved: Saved) -> None:
    buffers = dict(model.named_buffers())
    for name, dtype in saved.record.casts.items():
        if name not in buffers or f"torch.{dtype}" not in map(str, DTYPES.values()):
            raise CheckpointError(f"the recipe in {saved.path} cannot be read: it casts {name!r:.80} to {dtype!r:.20}")
        buffers[name].data = buffers[name].data.to(getattr(torch, dtype))
