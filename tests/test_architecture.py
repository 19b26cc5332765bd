"""Who may know whom: the house's rule, read from the imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ldmkit"
PLAIN = {"errors", "_version", "new_plugin", "parts", "recipes", "component", "discovery", "registry", "builtin"}
SPINE = {
    "process": {"errors"},
    "conditioning": {"errors"},
    "noise": {"process"},
    "denoiser": {"errors", "conditioning", "process"},
    "guidance": {"conditioning", "denoiser", "process"},
    "tiling": set(),
    "placing": {"conditioning", "denoiser", "guidance", "process", "tiling"},
    "samplers": {"denoiser", "noise", "process", "samplers"},
}
SPINE["composition"] = {"errors", "conditioning", "denoiser", "guidance", "process", "parts", "registry", "samplers"}
SPINE["model"] = {*SPINE, "component", "errors", "parts", "registry", "weights"}
LEAVES = {"first_stages": {"tiling"}, "backbones": set(), "conditioners": {"process"}}
HEAVY = {"timm", "open_clip", "transformers", "diffusers"}


def running(node):
    """Every node below but those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from running(child)


def imports(path):
    """(top-level module, whole dotted name) of every import in a file, lazy ones too."""
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0], node.module


def noun(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own(path):
    return {name.split(".")[1] for top, name in imports(path) if top == "ldmkit" and "." in name}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_house(path):
    name = noun(path)
    assert not {top for top, _ in imports(path)} & HEAVY, "only plug-ins import these"
    if name in PLAIN:
        assert "torch" not in {top for top, _ in imports(path)}, "listing components may not import torch"
        assert own(path) <= PLAIN
    if name in SPINE:
        assert own(path) <= SPINE[name] | {name}
    if name in LEAVES:
        assert own(path) <= {"conditioning", "errors", name} | LEAVES[name]


def test_the_spine_never_imports_a_leaf():
    for path in FILES:
        if noun(path) in SPINE:
            assert not own(path) & set(LEAVES)


def test_nothing_but_programs_knows_evaluation():
    knowing = {noun(path) for path in FILES if "evaluation" in own(path)}
    assert knowing <= {"evaluation", "demo", "__main__"}


def test_files_fit_a_sitting():
    long = {str(path.relative_to(PACKAGE)): n for path in FILES if (n := len(path.read_text().splitlines())) > 600}
    assert not long


def test_no_file_is_named_after_nothing():
    empty = {"utils", "common", "base", "core", "helpers", "misc", "manager", "engine"}
    assert not {path.stem for path in FILES} & empty
