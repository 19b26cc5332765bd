"""What became of every tensor of a file: the account that an import gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ldmkit.errors import CheckpointError

SHOWN = 20
"""How many names a message lists."""


@dataclass(frozen=True)
class Account:
    """A file's tensors beside a model's.

    Args:
        used: our name -> the file's, for every tensor that is filled.
        ignored: the file's name -> why it has no place in the model.
        missing: names that the file should have and has not.
        unexpected: names that the file has and nobody knows.
        wrong: tensors of another shape or kind, each as a sentence.
    """

    used: Mapping[str, str]
    ignored: Mapping[str, str]
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    wrong: Sequence[str] = ()

    @property
    def renamed(self) -> dict[str, str]:
        """The used tensors whose names differ, ours -> the file's."""
        return {ours: theirs for ours, theirs in self.used.items() if ours != theirs}

    def check(self, allow_missing: Sequence[str] = (), allow_unexpected: Sequence[str] = ()) -> None:
        """Refuse what does not fit.

        Args:
            allow_missing: prefixes, in the file's names, of what may be missing.
            allow_unexpected: prefixes of what may be there beside.

        Raises:
            CheckpointError: with at most :data:`SHOWN` names.
        """
        found = [f"missing {name:.120}" for name in self.missing if not name.startswith(tuple(allow_missing))]
        found += [f"unexpected {name:.120}" for name in self.unexpected if not name.startswith(tuple(allow_unexpected))]
        found += self.wrong
        if found:
            more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise CheckpointError(
                f"{len(found)} tensors do not fit the model: {'; '.join(sorted(found)[:SHOWN])}{more}"
            )


@dataclass(frozen=True)
class Report:
    """How a file was imported.

    Args:
        path: the file.
        layout: its format.
        composition: what said how the model is composed.
        weights: ``averaged``, ``raw``, or ``the only ones`` where the file has one set.
        account: every tensor.
        others: what the file holds beside its tensors, and why it was left.
        remarks: what the user should know.
    """

    path: str
    layout: str
    composition: str
    weights: str
    account: Account
    others: Mapping[str, str]
    remarks: Sequence[str] = ()

    def __str__(self) -> str:
        account = self.account
        lines = [
            f"{self.path}: {self.layout}",
            f"composed by     {self.composition}",
            f"network         {self.weights} weights",
            f"used            {_tensors(len(account.used))}, {len(account.renamed):,} of them renamed",
        ]
        reasons = Counter({**account.ignored, **self.others}.values())
        lines += [f"ignored         {count:>6,}  {reason}" for reason, count in sorted(reasons.items())]
        for kind, names in (("missing", account.missing), ("unexpected", account.unexpected)):
            lines.append(f"{kind:<16}{_tensors(len(names))}{': ' if names else ''}{', '.join(list(names)[:SHOWN])}")
        return "\n".join([*lines, *(f"note            {remark}" for remark in self.remarks)])


def _tensors(count: int) -> str:
    return "none" if count == 0 else "1 tensor" if count == 1 else f"{count:,} tensors"
