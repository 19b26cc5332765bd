"""The authors' pages list the checks that the suite has, and only the generator writes between their markers."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ldmkit.registry import KINDS
from ldmkit.testing import checks

ROOT = Path(__file__).resolve().parents[1]
AUTHORS = ROOT / "docs" / "authors"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("authors", ROOT / "docs" / "authors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_page_per_kind() -> None:
    assert {path.stem for path in AUTHORS.glob("*.md")} == set(KINDS)


def test_pages_list_the_checks_of_the_suite(tmp_path: Path) -> None:
    written = shutil.copytree(AUTHORS, tmp_path / "authors")
    command = [sys.executable, str(ROOT / "docs" / "authors.py"), str(written)]
    subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    for kind in KINDS:
        kept = (AUTHORS / f"{kind}.md").read_text(encoding="utf-8")
        assert kept == (written / f"{kind}.md").read_text(encoding="utf-8"), "run `python docs/authors.py`"


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_of_a_kind_is_listed_once_with_its_law(kind: str, generator: ModuleType) -> None:
    rows = re.findall(r"^\| `([^`]+)` \| \S", generator.listed(kind), re.MULTILINE)
    assert sorted(rows) == sorted(check.id for check in checks(kind))


def test_only_the_text_between_the_markers_is_written(generator: ModuleType) -> None:
    page = f"before\n{generator.BEGIN}\nSTALE\n{generator.END}\nafter\n"
    once = generator.updated(page, "process")
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "STALE" not in once
    assert generator.updated(once, "process") == once


@pytest.mark.parametrize("text", ["no markers", "{BEGIN}", "{END} {BEGIN}", "{BEGIN} {END} {END}"])
def test_a_page_without_its_markers_is_refused(text: str, generator: ModuleType) -> None:
    page = text.format(BEGIN=generator.BEGIN, END=generator.END)
    with pytest.raises(ValueError, match="needs the markers"):
        generator.updated(page, "process")
