"""Laws of the perceptual distances. Equality with the published code is in ``peers/test_lpips.py``."""

import pytest
import torch
from safetensors.torch import save_file

from ldmkit.errors import CheckpointError
from ldmkit.training import perceptual
from ldmkit.training.perceptual import DEPTHS, LPIPS, VGG16, GradientDistance, read_lpips

PLACES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # of the convolutions in torchvision's vgg16().features


@pytest.fixture(scope="module")
def lpips():
    """Random weights, kept so large that the features do not die out."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trunk = VGG16()
        for parameter in trunk.parameters():
            if parameter.ndim == 4:
                parameter.data.normal_(0, (2 / parameter[0].numel()) ** 0.5)
        return LPIPS(trunk, [torch.rand(widths[-1]) for widths in DEPTHS])


def torchvision_names(lpips):
    places = lpips.trunk.places().items()
    return {f"features.{n}.{name}": p.data for n, conv in places for name, p in conv.named_parameters()}


def head_names(lpips):
    return {f"lin{n}.model.1.weight": head.data.view(1, -1, 1, 1) for n, head in enumerate(lpips.heads)}


@pytest.fixture(params=["lpips", "gradient"])
def distance(request, lpips):
    return lpips if request.param == "lpips" else GradientDistance()


def images(batch=2, height=16, width=24):
    return torch.rand(batch, 3, height, width) * 2 - 1


def test_an_image_has_no_distance_from_itself(distance):
    image = images()
    assert torch.equal(distance(image, image), torch.zeros(2))


def test_distances_are_symmetric_positive_and_one_per_pair(distance):
    a, b = images(3), images(3)
    there = distance(a, b)
    assert there.shape == (3,)
    assert (there > 0).all()
    assert torch.equal(there, distance(b, a))
    torch.testing.assert_close(distance(a[1:2], b[1:2]), there[1:2])


def test_the_gradient_reaches_the_reconstruction_and_is_finite(distance):
    made = images().requires_grad_()
    distance(images(), made).sum().backward()
    assert made.grad.isfinite().all()
    assert made.grad.abs().sum() > 0


def test_features_of_norm_zero_have_no_distance_and_no_gradient():
    dead = LPIPS(VGG16(), [torch.ones(widths[-1]) for widths in DEPTHS])
    for parameter in dead.trunk.parameters():
        parameter.data.zero_()
    made = images().requires_grad_()
    distance = dead(images(), made)
    assert not distance.any()
    distance.sum().backward()
    assert torch.equal(made.grad, torch.zeros_like(made))


def test_no_weight_of_a_distance_is_trained(lpips):
    assert not [p for p in lpips.parameters() if p.requires_grad]


def test_convolutions_have_the_places_of_torchvision():
    assert list(VGG16().places()) == PLACES


def test_the_depths_halve_the_sides():
    maps = VGG16()(images(1, 16, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 16, 32), (128, 8, 16), (256, 4, 8), (512, 2, 4), (512, 1, 2)
    ]  # fmt: skip


def test_edges_are_compared_at_every_scale():
    ramp, flat = torch.arange(8.0).expand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    # Columns differ by 1, 2 and 4 at the three scales that 8 pixels have, rows by nothing.
    assert float(GradientDistance(9)(ramp, flat)) == 0.5 * (1 + 2 + 4)
    assert float(GradientDistance(1)(ramp, flat)) == 0.5
    assert float(GradientDistance()(flat + 3, flat)) == 0


@pytest.mark.parametrize("kind", ["safetensors", "pth", "published first stage"])
def test_weights_come_from_a_file(lpips, tmp_path, kind):
    path, heads = tmp_path / "vgg16", tmp_path / "heads.safetensors"
    save_file(head_names(lpips), heads)
    tensors = torchvision_names(lpips)
    if kind == "safetensors":
        save_file({**tensors, "classifier.0.weight": torch.zeros(3)}, path)
    elif kind == "pth":
        torch.save(tensors, path)
    else:
        slices = {name.replace("features", "loss.perceptual_loss.net.slice1"): value for name, value in tensors.items()}
        own = {f"loss.perceptual_loss.{name}": value for name, value in head_names(lpips).items()}
        save_file({**slices, **own, "decoder.conv_in.weight": torch.zeros(3)}, path)
        heads = None
    a, b = images(), images()
    read = read_lpips(path, heads)
    assert torch.equal(read(a, b), lpips(a, b))
    assert not read.training


def test_a_file_without_a_convolution_is_refused(lpips, tmp_path):
    tensors = torchvision_names(lpips)
    del tensors["features.28.bias"]
    save_file({name: value for name, value in tensors.items() if ".28." in name or ".26." in name}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"'features\.0\.weight' should be \(64, 3, 3, 3\) and is none"):
        read_lpips(tmp_path / "a")
    save_file({"lin0.model.1.weight": torch.zeros(1, 7, 1, 1)}, tmp_path / "heads")
    save_file(torchvision_names(lpips), tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"'lin0.model.1.weight' should be \(1, 64, 1, 1\) and is \(1, 7, 1, 1\)"):
        read_lpips(tmp_path / "b", tmp_path / "heads")


def test_missing_heads_are_said_with_what_to_do(lpips, tmp_path, monkeypatch):
    save_file(torchvision_names(lpips), tmp_path / "vgg16")
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install lpips, or give heads="):
        read_lpips(tmp_path / "vgg16")


def test_images_that_cannot_be_compared_are_refused(lpips):
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \(2, 3, 8, 24\)"):
        lpips(images(height=8), images(height=8))
    with pytest.raises(ValueError, match="take GradientDistance"):
        lpips(images()[:, :1], images()[:, :1])
    with pytest.raises(ValueError, match="images of one shape"):
        GradientDistance()(images(), images(height=8))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GradientDistance(0)
    with pytest.raises(ValueError, match=r"heads of \[64, 128, 256, 512, 512\] weights, got \[64\]"):
        LPIPS(lpips.trunk, [torch.ones(64)])
