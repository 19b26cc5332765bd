"""The lists of sound and wrong components, and how a class enters them."""

import re
from dataclasses import replace

from ldmkit.testing import Example

RIGHT, WRONG, OFFERED = [], [], []


def offered(kind, cls):
    """The name under which a class will be registered: its own, as words with hyphens."""
    name = re.sub(r"(?<=.)([A-Z])", r"-\1", cls.__name__).lower()
    OFFERED.append((kind, name, cls))
    return name


def right(kind, cls, **facts):
    """An example of a sound component, which wrong ones change in one place."""
    example = Example(kind, offered(kind, cls), **facts)
    RIGHT.append(example)
    return example


def caught_by(check, example, **facts):
    """Note a wrong component with the one check that it should fail."""

    def note(cls):
        WRONG.append((replace(example, name=offered(example.kind, cls), **facts), check))
        return cls

    return note
