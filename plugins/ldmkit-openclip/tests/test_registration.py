"""The plug-in is found, is light, and says what it offers."""

import subprocess
import sys

import ldmkit
import pytest

OFFERS = [("conditioner", "openclip-image"), ("conditioner", "openclip-text"), ("guidance", "clip-guidance")]


def test_the_registry_lists_what_this_distribution_offers():
    found = [plugin for plugin in ldmkit.plugins() if plugin.distribution == "ldmkit-openclip"]
    assert [plugin.status for plugin in found] == ["ok"]
    assert all(name in ldmkit.names(kind) for kind, name in OFFERS)


def test_listing_imports_neither_torch_nor_open_clip():
    code = (
        "import sys, ldmkit; assert 'clip-guidance' in ldmkit.names('guidance'); "
        "print([name for name in ('torch', 'open_clip', 'torchvision') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize(("kind", "name"), OFFERS)
def test_every_component_describes_itself(kind, name):
    described = ldmkit.describe(kind, name)
    assert described.summary
    assert described.distribution == "ldmkit-openclip"
