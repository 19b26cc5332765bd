"""The published Inception: its names and shapes, its arithmetic, and who may call a figure FID.

Weights here are random: the published file is nobody's to copy.
"""

import json
import math
from functools import partial
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ldmkit.errors import CheckpointError
from ldmkit.evaluation import Features, read_features, read_inception
from ldmkit.evaluation import features as naming
from ldmkit.evaluation.digest import digest_of_file
from ldmkit.evaluation.inception import Inception, resized


@pytest.fixture(scope="module")
def weights():
    """Every tensor of the published layout, such that activations keep their size."""

    def drawn(name, shape):
        if len(shape) > 1:
            return torch.randn(shape) * (2 / math.prod(shape[1:])) ** 0.5
        return 0.1 * torch.randn(shape) + name.endswith(("bn.weight", "var"))

    return {name: drawn(name, x.shape) for name, x in Inception().state_dict().items() if x.ndim}


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file({name: x.abs() if name.endswith("var") else x for name, x in weights.items()}, path)  # a variance
    return path


def test_the_layout_is_that_of_the_published_file():
    own = {name: tuple(x.shape) for name, x in Inception().state_dict().items()}
    assert len(own) == 566  # 94 convolutions with five tensors of their norm, and the classifier
    assert own["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert own["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert own["Mixed_6e.branch7x7dbl_5.bn.running_var"] == (192,)
    assert own["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert own["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert own["fc.weight"] == (1008, 2048)
    assert own["fc.bias"] == (1008,)


def test_features_are_those_of_torchvision_with_the_three_differences(file):
    inception = pytest.importorskip("torchvision.models.inception")
    ours = read_inception(file).network
    theirs = inception.Inception3(1008, aux_logits=False, init_weights=False).eval()
    theirs.load_state_dict(ours.state_dict())  # strict: the names are theirs
    theirs.fc = nn.Identity()
    images = (torch.rand(1, 3, 40, 52) * 255).round() / 255
    pool, seen = partial(F.avg_pool2d, count_include_pad=False), []

    def pooled(x, **options):
        seen.append(x)
        return F.max_pool2d(x, **options) if len(seen) == 9 else pool(x, **options)

    patched = mock.Mock(wraps=F)
    patched.avg_pool2d = pooled
    with mock.patch.object(inception, "F", patched), torch.no_grad():
        expected = theirs((resized(255 * images) - 128) / 128)
    assert len(seen) == 9
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_images_are_resized_from_the_first_pixel():
    ramp = torch.arange(598.0).view(1, 1, 1, 598).expand(1, 1, 4, 598)
    torch.testing.assert_close(resized(ramp)[0, 0, 0], 2 * torch.arange(299.0))  # every second pixel, none averaged
    small = torch.tensor([0.0, 299.0]).view(1, 1, 1, 2).expand(1, 1, 3, 2)
    row = resized(small)[0, 0, 5]
    torch.testing.assert_close(row[:150], 2 * torch.arange(150.0))
    assert (row[150:] == 299).all()  # beyond the last pixel there is no next


def test_only_the_published_file_makes_a_fid(file, monkeypatch):
    found = read_inception(file)
    short = digest_of_file(file)[:8]
    assert not found.published
    assert found.key("fd") == f"fd_inception_{short}"
    assert found.key("score") == f"score_inception_{short}"
    monkeypatch.setattr(naming, "PUBLISHED", digest_of_file(file))
    known = read_inception(file)
    assert [known.key(figure) for figure in ("fd", "kd", "score")] == ["fid", "kid", "is"]
    imposter = Features("own", nn.Flatten().eval(), file_sha256=naming.PUBLISHED)
    assert not imposter.published
    assert imposter.key("fd") == "fd_own"


def test_the_score_takes_logits_without_the_bias(file):
    found = read_inception(file)
    seen, logits = found(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))
    assert seen.shape == (2, 2048)
    torch.testing.assert_close(logits, seen @ found.network.fc.weight.T)


def test_the_report_names_the_file(file):
    facts = read_inception(file).facts()
    assert json.loads(json.dumps(facts))["file_sha256"] == digest_of_file(file)
    assert facts["published_inception"] is False


def test_a_missing_file_says_where_it_is_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pt_inception-2015-12-05-6726825d\.pth .* of https://github"):
        read_inception(tmp_path / "none.pth")


def test_other_files_are_refused(weights, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({name: x for name, x in weights.items() if not name.startswith("fc")}, path)
    with pytest.raises(CheckpointError, match=r"2 of 566 weights differ; 'fc\.bias' should be \(1008,\) and is absent"):
        read_inception(path)


def test_a_network_of_ones_own_is_filled_and_named(tmp_path):
    torch.save({"weight": torch.full((2, 3), 0.5), "bias": torch.zeros(2)}, tmp_path / "own.pt")
    found = read_features("own", nn.Linear(3, 2), tmp_path / "own.pt")
    assert float(found.network.weight.detach().sum()) == 3
    assert found.file_sha256 == digest_of_file(tmp_path / "own.pt")
    assert found.key("kd") == "kd_own"
    with pytest.raises(CheckpointError, match=r"'weight' should be \(2, 4\) and is \(2, 3\)"):
        read_features("own", nn.Linear(4, 2), tmp_path / "own.pt")
