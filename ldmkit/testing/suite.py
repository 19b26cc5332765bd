"""The suite: which checks each kind has, and how an example goes through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from ldmkit.component import KINDS, did_you_mean, quoted, reason
from ldmkit.testing import (
    arithmetic,
    backbones,
    borders,
    building,
    conditioners,
    copies,
    first_stages,
    guidances,
    processes,
    purity,
    recipes,
    samplers,
    tasks,
)
from ldmkit.testing.case import Case
from ldmkit.testing.check import Check, CheckFailed, NotApplicable, Result
from ldmkit.testing.example import Example

_COPIES = (copies.survives_deepcopy, copies.survives_pickle)
_COMMON = (*building.CHECKS, *purity.CHECKS, *_COPIES)
_VALUES = (*_COMMON, *arithmetic.VALUES)
_MODULE = (*_VALUES, copies.survives_a_file, *arithmetic.MODULES, *borders.CHECKS)

_CHECKS: dict[str, tuple[Check, ...]] = {
    "first-stage": (*_MODULE, *first_stages.CHECKS),
    "backbone": (*_MODULE, *backbones.CHECKS),
    "conditioner": (*_MODULE, *conditioners.CHECKS),
    "process": (*_VALUES, *processes.CHECKS),
    "sampler": (*_VALUES, *samplers.CHECKS),
    "guidance": (*_VALUES, *guidances.CHECKS),
    "task": (*_COMMON, arithmetic.samples_are_independent, *tasks.CHECKS),
    "recipe": (*(check for check in _COMMON if check is not building.can_be_written_down), *recipes.CHECKS),
}


def checks(kind: str) -> tuple[Check, ...]:
    """The checks of a kind, in the order in which they are reported.

    Raises:
        ValueError: no such kind.
    """
    if kind not in _CHECKS:
        raise ValueError(f"unknown kind '{kind}'{did_you_mean(kind, KINDS)}; the kinds are {quoted(KINDS)}")
    return _CHECKS[kind]


class Run:
    """One example on its way through the checks of its kind; each is made once, when it is first asked for.

    Args:
        example: the example.

    Raises:
        ValueError: the example expects a check to fail that its kind does not have.
    """

    def __init__(self, example: Example) -> None:
        self.example = example
        self.checks = {check.id: check for check in checks(example.kind)}
        self._results: dict[str, Result] = {}
        for name in example.expected:
            if name not in self.checks:
                near = did_you_mean(name, self.checks)
                raise ValueError(f"{example} expects '{name}' to fail, and {example.kind}s have no such check{near}")

    @cached_property
    def _case(self) -> Case:
        return Case(self.example)

    def result(self, name: str) -> Result:
        """How the check with this id ends."""
        if name not in self._results:
            self._results[name] = self._made(self.checks[name])
        return self._results[name]

    def results(self) -> Iterator[Result]:
        """How every check ends."""
        return map(self.result, self.checks)

    def _made(self, check: Check) -> Result:
        for name in check.needs:
            if name in self.checks and self.result(name).status in ("fail", "expected failure", "not run"):
                return Result(check, "not run", f"it needs '{name}', which does not hold")
        begin = time.perf_counter()
        result = self._judged(check)
        return Result(result.check, result.status, result.detail, time.perf_counter() - begin, result.error)

    def _judged(self, check: Check) -> Result:
        why = self.example.expected.get(check.id)
        try:
            check.function(self._case)
        except NotApplicable as told:
            return Result(check, "not applicable", str(told))
        except Exception as error:
            detail = str(error) if isinstance(error, CheckFailed) else reason(error)
            if why is not None:
                return Result(check, "expected failure", f"{why} ({detail})", error=error)
            return Result(check, "fail", detail, error=error)
        if why is not None:
            surprise = CheckFailed(f"it was expected to fail, because {why}, and passes: take it out of expected=")
            return Result(check, "fail", str(surprise), error=surprise)
        return Result(check, "pass")


def run_checks(example: Example) -> list[Result]:
    """Put an example through every check of its kind.

    Raises:
        ValueError: the example expects a check to fail that its kind does not have.
    """
    return list(Run(example).results())


def conformance(*examples: Example) -> Callable[..., None]:
    """A test for pytest, with one case per check: ``test_depth_map = conformance(Example(...))``.

    A check that is not applicable, or that needs another which fails, is skipped with the reason; one that the example
    expects to fail is an expected failure, and must be one.

    Args:
        examples: one or several; the cases of several are told apart by their labels.
    """
    import pytest

    runs = [Run(example) for example in examples]
    cases = [pytest.param(run, name, id=_case_id(run, name, examples)) for run in runs for name in run.checks]

    @pytest.mark.parametrize(("run", "name"), cases)
    def test_conformance(run: Run, name: str) -> None:
        result = run.result(name)
        match result.status:
            case "fail" if result.error is not None:
                raise result.error
            case "expected failure":
                pytest.xfail(result.detail)
            case "not applicable" | "not run":
                pytest.skip(f"{result.status}: {result.detail}")

    return test_conformance


def _case_id(run: Run, name: str, examples: Sequence[Example]) -> str:
    if len(examples) == 1:
        return name
    return f"{run.example.name}, {run.example.label}: {name}" if run.example.label else f"{run.example.name}: {name}"
