"""The plug-in is found, is light, and says what it offers."""

import subprocess
import sys

import ldmkit
import pytest

OFFERS = [("backbone", "dit"), ("conditioner", "timm-image")]


def test_the_registry_lists_what_this_distribution_offers():
    found = [plugin for plugin in ldmkit.plugins() if plugin.distribution == "ldmkit-timm"]
    assert [plugin.status for plugin in found] == ["ok"]
    assert all(name in ldmkit.names(kind) for kind, name in OFFERS)


def test_listing_imports_neither_torch_nor_timm():
    code = (
        "import sys, ldmkit; assert 'dit' in ldmkit.names('backbone'); "
        "print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize(("kind", "name"), OFFERS)
def test_every_component_describes_itself(kind, name):
    described = ldmkit.describe(kind, name)
    assert described.summary
    assert described.distribution == "ldmkit-timm"
