"""The page of published models says what the recipes say, and its calls are Python."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ldmkit
from ldmkit.recipes import FIRST_STAGES, PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "checkpoints" / "models.md").read_text(encoding="utf-8")


def section(name):
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_the_page_is_that_of_the_recipes(tmp_path):
    command = [sys.executable, str(ROOT / "docs" / "models.py"), str(tmp_path / "models.md")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    assert (tmp_path / "models.md").read_text(encoding="utf-8") == PAGE, "run `python docs/models.py`"


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_has_its_call_file_and_licence(name):
    notes, text = ldmkit.recipe(name).notes, section(name)
    (call,) = re.findall(r"```python no-run\n(.*?)```", text, re.DOTALL)
    ast.parse(call)
    assert f'recipe="{name}"' in call
    given = ast.parse(f"f({notes['inputs']})").body[0].value.keywords
    assert all(ast.dump(keyword) in ast.dump(ast.parse(call)) for keyword in given)
    assert f"<{notes['source']}>" in text
    assert notes["licence"] in text
    assert all(remark in text for remark in notes["remarks"])
    assert f"| [{name}](#{name}) |" in PAGE


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_every_first_stage_has_a_row(name):
    assert f"\n| {name} | " in section("First stages alone")
