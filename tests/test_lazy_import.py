"""``import ldmkit`` and listing cost no torch; the public names come when they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ldmkit

ROOT = Path(ldmkit.__file__).parents[1]


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running the code."""
    script = f"import sys\n{code}\nprint('\\nMODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


def lazy_imports() -> dict[str, str]:
    """Public name -> module, as the block for type checkers imports them."""
    tree = ast.parse(Path(ldmkit.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def test_import_loads_neither_torch_nor_the_registry():
    loaded = loaded_after("import ldmkit; ldmkit.__version__, ldmkit.LdmkitError, dir(ldmkit)")
    assert not {"torch", "numpy", "pluggy", "ldmkit.registry"} & loaded


def test_listing_loads_no_torch():
    loaded = loaded_after(
        "import ldmkit; from ldmkit.registry import KINDS; [ldmkit.names(k) for k in KINDS]; ldmkit.plugins()"
    )
    assert "ldmkit.builtin" in loaded
    assert not {"torch", "numpy"} & loaded


def test_registering_by_hand_loads_no_torch():
    assert "torch" not in loaded_after(
        "import ldmkit; ldmkit.register('task', 'mine', dict); ldmkit.build('task', 'mine')"
    )


def test_type_checkers_and_python_see_the_same_names():
    assert set(lazy_imports()) <= set(dir(ldmkit))


@pytest.mark.parametrize(("name", "module"), sorted(lazy_imports().items()))
def test_public_name_is_its_module_s(name: str, module: str):
    value = getattr(ldmkit, name)
    assert value is getattr(sys.modules[module], name)
    assert callable(value)


def test_public_names_survive_the_import_of_every_module():
    code = "import ldmkit, ldmkit.pipelines, ldmkit.parts, ldmkit.registry\nassert callable(ldmkit.pipeline)"
    assert "ldmkit.pipelines" in loaded_after(code)


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ldmkit' has no attribute 'scheduler'"):
        ldmkit.scheduler  # noqa: B018
