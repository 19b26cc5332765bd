"""The pages say what is true: their code runs and prints what they show, and what they point to is there.

A block marked ``python`` runs, in the page's own namespace and after the blocks before it. A ``text`` block right after
it is what it prints, or the error it ends in; ``...`` there stands for anything, and the line breaks of an error are
free. A block without one may print and may not fail. A block marked ``python no-run`` is not run.

One page alone: ``python tests/test_docs.py docs/compose.md``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import traceback
import types
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md")) + [
    path for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (path := ROOT / name).exists()
]
FENCE = re.compile(r"^```(?P<info>.*)\n(?P<body>(?:.*\n)*?)```$", re.MULTILINE)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page it begins on."""

    info: str
    text: str
    line: int
    begin: int
    end: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["info"].strip(), m["body"], text.count("\n", 0, m.start("body")), m.start(), m.end())
        for m in FENCE.finditer(text)
    ]


def code(page: Path) -> list[tuple[Block, str | None]]:
    """(block to run, what it shows) of a page."""
    text, found = page.read_text(encoding="utf-8"), blocks(page)
    shown = {}
    for block, after in pairwise(found):
        if after.info == "text" and not text[block.end : after.begin].strip():
            shown[block] = after.text
    return [(block, shown.get(block)) for block in found if block.info == "python"]


def run(page: Path) -> None:
    """Run a page's code in the current folder, and compare what it prints with what it shows."""
    import torch

    torch.manual_seed(0)
    warnings.simplefilter("error")
    module = sys.modules["__main__"] = types.ModuleType("__main__")  # as in a notebook
    for block, shown in code(page):
        printed, error = io.StringIO(), ""
        lines = "\n" * block.line + block.text  # so that a traceback shows the page's own lines
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(lines, str(page), "exec", dont_inherit=True), vars(module))
        except Exception as raised:
            if shown is None:
                raise
            error = "".join(traceback.format_exception_only(raised))
        got = printed.getvalue() + error
        if shown is not None and not fits(got, shown, words=bool(error)):
            raise AssertionError(f"{page.name}:{block.line} shows\n\n{shown}\nand gives\n\n{got}")


def fits(got: str, shown: str, words: bool) -> bool:
    """Whether a text is what a page shows of it; ``words``: up to line breaks and spaces."""
    if words:
        got, shown = " ".join(got.split()), " ".join(shown.split())
    return re.fullmatch(re.escape(shown).replace(r"\.\.\.", ".*?"), got, re.DOTALL) is not None


def prose(page: Path) -> str:
    """A page without its blocks and without code in its lines."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """The headings of a page as its host makes links of them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=named)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_index() -> None:
    reached: set[Path] = set()
    ahead = [DOCS / "index.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        found = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        ahead += [path for path in found - reached if path.suffix == ".md" and path.is_file()]
    assert set(DOCS.rglob("*.md")) <= reached


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, test in re.findall(r"`((?:tests|ldmkit|docs)/[\w./-]+\.\w+)(?:::(\w+))?`", text):
        file = ROOT / path
        assert file.exists(), path
        assert not test or f"def {test}(" in file.read_text(encoding="utf-8"), f"{path}::{test}"


def test_component_pages_are_what_the_registry_says(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCS / "generate.py"), str(tmp_path)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "components").iterdir()}
    assert kept == written, "run `make docs`"


@pytest.mark.parametrize(
    ("got", "shown", "words", "fit"),
    [
        ("a\n", "a\n", False, True),
        ("a  b\n", "a b\n", False, False),
        ("a b\n", "a\nb\n", True, True),
        ("ldmkit 0.1\n", "ldmkit ...\n", False, True),
        ("a.c\n", "abc\n", False, False),
        ("", "a\n", False, False),
        ("a\n", "", False, False),
    ],
)
def test_what_a_page_shows_is_compared_whole(got: str, shown: str, words: bool, fit: bool) -> None:
    assert fits(got, shown, words) is fit


@pytest.mark.parametrize("source", ["print(1 + 1)", "raise ValueError('2')"])
def test_a_page_that_shows_something_else_fails(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    page = tmp_path / "page.md"
    page.write_text(f"```python\n{source}\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:1 shows"):
        run(page)


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
