"""Pickles read as data: a machine for the pickle format that imports nothing and calls nothing.

A pickle is a program for a stack machine that makes objects by importing names and calling them. This machine runs the
same programs over other values: a name stays a :class:`Name`, and what calling it would give is looked up in a fixed
table: a tensor becomes a :class:`Tensor`, which says where its numbers lie in the file, a dictionary a ``dict``, and
what old training files hold beside tensors an :class:`Inert` that does nothing. Any other name is refused. Nothing
here is shared between calls, so threads do not meet.

Source: PEP 307, PEP 3154 and the module ``pickletools`` of Python (the format).
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ldmkit.errors import CheckpointError
from ldmkit.weights.names_in_pickles import DICTIONARIES, INERT, STORAGES

MAX_BYTES = 16 * 2**20
"""The longest program that is run. Checkpoints of a billion parameters with an optimizer's state take 1 MiB."""

MAX_STEPS = 1_000_000
"""The most instructions: some 30,000 tensors."""

MAX_SIDES = 16
_WIDEST_KEY = 2**60  # wider integers may be chosen so that they collide in a dict, which then takes hours to fill


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names; it is not imported."""

    dotted: str


class Inert:
    """An object that a pickle describes and that is none of ours: what is put into it is dropped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers of one kind, somewhere in the file."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where the numbers of a tensor lie in a storage, and in which order. All counts are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    """Where the arguments of an instruction begin on the stack."""


_MARK = _Mark()


class Described(NamedTuple):
    """What a pickle describes, and the storages that it speaks of, by their keys."""

    value: object
    storages: Mapping[str, Storage]


def run(stream: io.BytesIO) -> Described:
    """What a pickle describes; the stream is left behind its end.

    Args:
        stream: at the beginning of a pickle.

    Raises:
        CheckpointError: not a pickle, a longer one than :data:`MAX_STEPS`, or one that names what is in no table.
    """
    machine = _Machine()
    steps = 0
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            steps += 1
            if steps > MAX_STEPS:
                raise CheckpointError(f"its pickle has more than {MAX_STEPS:,} instructions")
            machine.step(opcode.name, argument)
        return Described(machine.result(), machine.storages)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"its pickle is damaged: {error!r:.200}") from error


class _Machine:
    """One run: a stack and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401 - what the instruction carries
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in _REMEMBERED:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in _RECALLED:
            self.stack.append(self.memo[argument])
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        elif name not in _SKIPPED:
            raise CheckpointError(f"its pickle uses the instruction {name}, which no checkpoint needs")

    def result(self) -> object:
        """The one value that a complete program leaves behind."""
        (value,) = self.stack
        return value

    def marked(self) -> list[Any]:
        """Take everything down to the last mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                taken = self.stack[place + 1 :]
                del self.stack[place:]
                return taken
        raise ValueError("there is no mark on the stack")

    def taken(self, count: int) -> list[Any]:
        """Take the topmost values."""
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def call(self, function: object, arguments: object) -> None:
        """Push what calling a name gives."""
        self.stack.append(_called(_name(function), arguments))

    def extend(self, items: Sequence[object]) -> None:
        """Put items into the list or set on top."""
        match self.stack[-1]:
            case list() as target:
                target.extend(items)
            case Inert():
                pass
            case other:
                raise TypeError(f"items for a {type(other).__name__}")

    def update(self, items: Sequence[object]) -> None:
        """Put keys and values, in turns, into the dictionary on top."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict):
            raise TypeError(f"keys for a {type(target).__name__}")
        target.update(_pairs(items))

    def set_state(self, argument: None) -> None:
        """Drop the state of the object on top: attributes of a dictionary or of something inert."""
        del argument
        self.taken(1)
        if not isinstance(self.stack[-1], dict | Inert | Tensor):
            raise TypeError(f"a state for a {type(self.stack[-1]).__name__}")

    def pop(self, argument: None) -> None:
        """Drop the value on top."""
        del argument
        self.taken(1)

    def pop_mark(self, argument: None) -> None:
        """Drop everything down to the mark."""
        del argument
        self.marked()

    def made(self, argument: str) -> None:
        """INST: a name, and its arguments down to the mark."""
        self.call(_global(argument), tuple(self.marked()))

    def object(self, argument: None) -> None:
        """OBJ: the same, with the name first above the mark."""
        del argument
        function, *arguments = self.marked()
        self.call(function, tuple(arguments))

    def new(self, count: int) -> None:
        """REDUCE, NEWOBJ and NEWOBJ_EX: a name below its arguments."""
        function, arguments, *_ = self.taken(count)
        self.call(function, arguments)

    def stack_global(self, argument: None) -> None:
        """A name whose two halves lie on the stack."""
        del argument
        module, attribute = self.taken(2)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise TypeError("a name that is not a string")
        self.stack.append(_known(f"{module}.{attribute}"))

    def persistent(self, argument: None) -> None:
        """A storage: ('storage', type, key, device, elements), and where it is a view of another, None."""
        del argument
        match self.taken(1)[0]:
            case ("storage", Name(dotted), str(key), str(), int(numel), *view) if view in ([], [None]):
                if dotted not in STORAGES or not 0 <= numel < 2**63:
                    raise ValueError(f"a storage of {numel} elements of {dotted}")
                storage = Storage(STORAGES[dotted], key, numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise ValueError("two storages with one key")
                self.stack.append(storage)
            case _:
                raise ValueError("a persistent id that is no storage")


def _name(value: object) -> Name:
    if not isinstance(value, Name):
        raise TypeError(f"a {type(value).__name__} is called")
    return value


def _global(pair: str) -> Name:
    """A name that an instruction carries, as 'module attribute'."""
    return _known(pair.replace(" ", ".", 1))


def _known(dotted: str) -> Name:
    if dotted not in _CALLS and dotted not in INERT and dotted not in DICTIONARIES and dotted not in STORAGES:
        raise CheckpointError(
            f"its pickle names '{dotted}', which is no part of a checkpoint: the file holds a program or whole objects "
            "in place of weights. If you trust it, save its state_dict as safetensors with the program that wrote it"
        )
    return Name(dotted)


def _called(name: Name, arguments: object) -> object:
    if not isinstance(arguments, tuple):
        raise TypeError("arguments that are no tuple")
    if name.dotted in _CALLS:
        return _CALLS[name.dotted](arguments)
    if name.dotted in DICTIONARIES:
        return _dictionary(arguments)
    return Inert()


def _dictionary(arguments: tuple[object, ...]) -> dict[Any, Any]:
    """``OrderedDict()``, ``defaultdict(factory)``, ``Counter(mapping)``; what is given is not copied."""
    match arguments:
        case () | (Name(),):
            return {}
        case (dict() as mapping,):
            return mapping
        case (list() as pairs,) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return _pairs([part for pair in pairs for part in pair])  # as Python 2 wrote an OrderedDict
        case _:
            raise ValueError("a dictionary of something else than keys and values")


def _pairs(items: Sequence[object]) -> dict[Any, Any]:
    keys, values = items[::2], items[1::2]
    for key in keys:
        wide = isinstance(key, int) and abs(key) > _WIDEST_KEY
        if wide or not isinstance(key, str | bytes | int | Name | Inert | None):
            raise ValueError(f"a {type(key).__name__} as a key")
    return dict(zip(keys, values, strict=True))


def _tensor(arguments: tuple[object, ...]) -> Tensor:
    """``_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)``; the first version had four."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_):
            _check_layout(storage, offset, shape, stride)
            return Tensor(storage, offset, shape, stride)
        case _:
            raise ValueError("a tensor that is not described as one")


def _check_layout(storage: Storage, offset: int, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> None:
    """Refuse what lies outside of its storage, and elements that are repeated or skipped."""
    # No message may show what is not yet known to be short: shared tuples within tuples print without end.
    if len(shape) != len(stride) or len(shape) > MAX_SIDES:
        raise ValueError(f"a tensor with {len(shape)} sides and {len(stride)} strides")
    if not all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *shape, *stride)):
        raise ValueError("a tensor whose offset, sides or strides are no counts")
    numel = count(shape)
    if offset + numel > storage.numel:
        raise CheckpointError(
            f"it holds a tensor of shape {shape} in a storage of {storage.numel} elements, at {offset}: the file is "
            "damaged or made up"
        )
    expected = 1
    for side, step in sorted(zip(shape, stride, strict=True), key=lambda pair: pair[1]):
        if numel > 0 and side > 1:
            if step != expected:
                raise CheckpointError(
                    f"it holds a tensor of shape {shape} with strides {stride}, which repeats or skips elements: save "
                    "it contiguous"
                )
            expected *= side


def count(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    numel = 1
    for side in shape:
        numel *= side
    return numel


def _from_type(arguments: tuple[object, ...]) -> object:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: a tensor with attributes."""
    match arguments:
        case (Name(dotted), Name(), tuple(inner), _) if dotted in _PLAIN:
            return _PLAIN[dotted](inner)
        case _:
            raise ValueError("a tensor of a class that is not known")


def _first(arguments: tuple[object, ...]) -> object:
    """A parameter is its tensor."""
    if not arguments or not isinstance(arguments[0], Tensor):
        raise ValueError("a parameter without a tensor")
    return arguments[0]


_PLAIN: Mapping[str, Callable[[tuple[object, ...]], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
_CALLS = {**_PLAIN, "torch._tensor._rebuild_from_type_v2": _from_type}

_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_PUSHED = frozenset({*_NUMBERS, *_TEXTS, *_BYTES})
_CONSTANTS: Mapping[str, object] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "MARK": _MARK,
}
_FRESH: Mapping[str, Callable[[], object]] = {"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": dict}
_REMEMBERED = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_RECALLED = frozenset({"GET", "BINGET", "LONG_BINGET"})
_SKIPPED = frozenset({"PROTO", "FRAME", "STOP"})
_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "APPEND": lambda machine, _: machine.extend(machine.taken(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.marked()),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.marked()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.taken(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.taken(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.taken(3))),
    "SETITEM": lambda machine, _: machine.update(machine.taken(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    "DICT": lambda machine, _: machine.stack.append(_pairs(machine.marked())),
    "GLOBAL": lambda machine, pair: machine.stack.append(_global(pair)),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": lambda machine, _: machine.new(2),
    "NEWOBJ": lambda machine, _: machine.new(2),
    "NEWOBJ_EX": lambda machine, _: machine.new(3),
    "INST": _Machine.made,
    "OBJ": _Machine.object,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.persistent,
}
