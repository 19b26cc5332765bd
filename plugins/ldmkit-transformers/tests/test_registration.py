"""The plug-in is found, is light, and says what it offers."""

import subprocess
import sys

import ldmkit
import pytest

NAMES = ("bert", "bert-text", "clip-image", "clip-text", "t5-text")


def test_the_registry_lists_what_this_distribution_offers():
    found = [plugin for plugin in ldmkit.plugins() if plugin.distribution == "ldmkit-transformers"]
    assert [plugin.status for plugin in found] == ["ok"]
    assert set(NAMES) <= set(ldmkit.names("conditioner"))


def test_listing_imports_neither_torch_nor_transformers():
    code = (
        "import sys, ldmkit; assert 'clip-text' in ldmkit.names('conditioner'); "
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_component_describes_itself(name):
    described = ldmkit.describe("conditioner", name)
    assert described.summary
    assert described.distribution == "ldmkit-transformers"
