"""Write the list of checks into each author's page, from the conformance suite.

    python docs/authors.py [FOLDER]

The folder is ``docs/authors`` where none is given. Only what stands between the two markers of ``<kind>.md`` is
written; the rest of a page is its author's. The text depends on the suite alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ldmkit.registry import KINDS
from ldmkit.testing import Check, checks

FOLDER = Path(__file__).resolve().parent / "authors"
BEGIN = "<!-- checks: written by docs/authors.py, do not edit -->"
END = "<!-- end of checks -->"


def main() -> None:
    """Bring every page's list up to date."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for kind in KINDS:
        page = folder / f"{kind}.md"
        page.write_text(updated(page.read_text(encoding="utf-8"), kind), encoding="utf-8")


def updated(text: str, kind: str) -> str:
    """A page with the list of its kind between its markers.

    Raises:
        ValueError: the page does not have each marker once, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"the page of kind '{kind}' needs the markers {BEGIN!r} and {END!r}, once each and in order")
    return f"{before}{BEGIN}\n\n{listed(kind)}\n\n{END}{after}"


def listed(kind: str) -> str:
    """The checks of a kind as a table: those every kind has, and then its own."""
    everywhere = set.intersection(*({check.id for check in checks(other)} for other in KINDS))
    rows = sorted(checks(kind), key=lambda check: check.id in everywhere)
    own = sum(check.id not in everywhere for check in rows)
    count = f"{len(rows)} checks; the last {len(rows) - own} are those of every kind."
    return "\n".join([count, "", "| check | law |", "| --- | --- |", *map(_row, rows)])


def _row(check: Check) -> str:
    law = re.sub(r"``", "`", check.law).replace("|", r"\|")
    return f"| `{check.id}` | {law} |"


if __name__ == "__main__":
    main()
