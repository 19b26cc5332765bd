"""LPIPS against the package ``lpips``, with its heads and a random trunk: no weights of VGG16 are at hand.

The tolerance is that of float32 sums in another order.
"""

import warnings

import pytest
import torch

from ldmkit.training.perceptual import read_lpips

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lpips = pytest.importorskip("lpips")


@pytest.mark.filterwarnings("ignore")
def test_lpips_is_that_of_its_authors(tmp_path):
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    trunk = {}
    for name, parameter in theirs.net.named_parameters():
        if parameter.ndim == 4:
            parameter.data.normal_(0, (2 / parameter[0].numel()) ** 0.5)
        trunk["features." + name.partition(".")[2]] = parameter.data
    torch.save(trunk, tmp_path / "vgg16.pth")
    ours = read_lpips(tmp_path / "vgg16.pth")  # the heads are those of the package
    a, b = torch.rand(2, 3, 32, 48) * 2 - 1, torch.rand(2, 3, 32, 48) * 2 - 1
    expected = theirs(a, b).flatten()
    assert (expected > 0.1).all()
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-5, atol=0)
