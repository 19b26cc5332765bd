"""What a check is: a law with an id, and the three ways in which it can end.

A check is a function of a :class:`~ldmkit.testing.case.Case` that returns where the law holds, raises
:class:`CheckFailed` where it does not, and :class:`NotApplicable` where the component declares something that takes it
out of the law. Any other exception is the component's own and fails the check too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

if TYPE_CHECKING:
    from ldmkit.testing.case import Case

Status = Literal["pass", "fail", "expected failure", "not applicable", "not run"]


class CheckFailed(AssertionError):
    """A component breaks a law; the message says what was seen."""


class NotApplicable(Exception):
    """A law says nothing about this component; the message is the declared fact that tells."""


@dataclass(frozen=True)
class Check:
    """One law, by its id.

    Args:
        function: the check itself; its name is the id and the first line of its docstring the law.
        needs: ids of the checks without which this one says nothing: it is not run where one of them fails.
    """

    function: Callable[[Case], None]
    needs: tuple[str, ...]

    @property
    def id(self) -> str:
        """Lower-case words with hyphens."""
        return self.function.__name__.replace("_", "-")

    @property
    def law(self) -> str:
        """The law in one line."""
        return inspect.cleandoc(self.function.__doc__ or "").partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.id}: {self.law}"


@dataclass(frozen=True)
class Result:
    """How one check ended.

    Args:
        check: the check.
        status: ``pass``, ``fail``, ``expected failure`` (the example says why), ``not applicable`` (the component
            declares so) or ``not run`` (a check that it needs fails).
        detail: the reason; empty for a pass.
        seconds: what it took.
        error: what was raised, where it failed.
    """

    check: Check
    status: Status
    detail: str = ""
    seconds: float = 0.0
    error: BaseException | None = None


def check(*needs: str) -> Callable[[Callable[[Case], None]], Check]:
    """Make a check of a function; ``needs`` are the ids of checks that must hold for this one to mean anything."""
    return lambda function: Check(function, needs)


def require(holds: bool, message: str) -> None:
    """Refuse what breaks the law.

    Raises:
        CheckFailed: ``holds`` is false.
    """
    if not holds:
        raise CheckFailed(message)


def not_applicable(reason: str) -> NoReturn:
    """End a check that says nothing about the component.

    Raises:
        NotApplicable: always.
    """
    raise NotApplicable(reason)
