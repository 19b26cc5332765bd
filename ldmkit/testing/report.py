"""The suite's results as text: what ``python -m ldmkit check`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from ldmkit import registry
from ldmkit.component import owned_by, reason
from ldmkit.errors import FactoryError, OptionError
from ldmkit.testing.check import Result
from ldmkit.testing.example import Example
from ldmkit.testing.examples import examples
from ldmkit.testing.suite import run_checks


@dataclass(frozen=True)
class Report:
    """The results of one component's examples; ``print`` it.

    Args:
        owner: distribution and version of the component.
        results: per example, in order, how every check ended.
    """

    owner: str
    results: tuple[tuple[Example, tuple[Result, ...]], ...]

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(result.status == "fail" for _, results in self.results for result in results)

    def __str__(self) -> str:
        return "\n\n".join(self._table(example, results) for example, results in self.results)

    def _table(self, example: Example, results: tuple[Result, ...]) -> str:
        rows = [(result.check.id, result.status, " ".join(result.detail.split())) for result in results]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"  {name:<{widths[0]}}  {status:<{widths[1]}}  {why}".rstrip() for name, status, why in rows]
        counts = Counter({"pass": 0, "fail": 0, "not applicable": 0})
        counts.update(result.status for result in results)
        total = ", ".join(f"{count} {status}" for status, count in counts.items())
        return "\n".join([f"{example} ({self.owner})", *lines, f"  {total}"])


def report(kind: str, name: str, options: Mapping[str, Any] | None = None, example: str | None = None) -> Report:
    """Put one component through the suite.

    Args:
        kind: the registry's kind.
        name: a name, or ``name@distribution``.
        options: its keywords; None: those of the example. A built-in has examples of its own, and each is used.
        example: ``module:attribute`` of an example, which a plug-in's conditioner or task needs for its inputs.

    Raises:
        UnknownComponentError: no such component.
        FactoryError: the component or the example cannot be imported.
        OptionError: there is no example to tell what the component is given.
    """
    description = registry.describe(kind, name)
    chosen = _examples(kind, name, example)
    if options is not None:
        chosen = (replace(chosen[0], options=dict(options), label="", expected={}),)
    results = tuple((one, tuple(run_checks(one))) for one in chosen)
    return Report(owned_by(description.distribution, description.version), results)


def _examples(kind: str, name: str, path: str | None) -> tuple[Example, ...]:
    if path is not None:
        return (_imported(path, kind, name),)
    known = examples(kind, name.removesuffix("@ldmkit"))
    if known:
        return known
    try:
        return (Example(kind, name),)
    except ValueError as error:
        raise OptionError(f"{error}: name one with --example module:attribute") from error


def _imported(path: str, kind: str, name: str) -> Example:
    module, _, attribute = path.partition(":")
    try:
        found: object = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"the example '{path}' cannot be imported: {reason(error)}") from error
    if not isinstance(found, Example) or found.kind != kind:
        raise OptionError(f"'{path}' is {found!s:.60}, not an example of {kind} '{name}'")
    return replace(found, name=name)
