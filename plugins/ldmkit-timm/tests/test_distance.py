"""The perceptual distance: what it is, computed independently, and the laws of a distance."""

import pytest
import timm
import torch

from ldmkit_timm.distance import TimmDistance
from ldmkit_timm.network import normalised, reads


@pytest.fixture
def distance():
    return TimmDistance("test_resnet")


@pytest.fixture
def image():
    return torch.rand(3, 3, 48, 64) * 2 - 1


def test_it_is_the_mean_squared_difference_of_unit_features(image):
    distance = TimmDistance("test_resnet", layers=[1, 3])
    network = timm.create_model("test_resnet", num_classes=0).eval()
    network.load_state_dict(distance.network.state_dict())
    other = image.flip(3)
    want = []
    for layer in (1, 3):
        maps = []
        for picture in (image, other):
            x = normalised(picture, *reads(network, {}))
            maps.append(network.forward_intermediates(x, [layer], output_fmt="NCHW", intermediates_only=True)[0])
        cosine = torch.cosine_similarity(*maps, dim=1)
        want.append((2 - 2 * cosine).mean(dim=(1, 2)))
    torch.testing.assert_close(distance(image, other), (want[0] + want[1]) / 2, atol=1e-5, rtol=1e-4)


def test_equal_images_are_at_no_distance_and_none_is_beyond_four(distance, image):
    torch.testing.assert_close(distance(image, image), torch.zeros(3))
    assert (distance(image, -image) <= 4).all()


def test_it_is_symmetric(distance, image):
    other = image.roll(5, dims=2)
    torch.testing.assert_close(distance(image, other), distance(other, image))


def test_it_grows_with_noise(distance, image):
    noise = torch.randn(image.shape)
    near, middle, far = (distance(image, image + level * noise) for level in (0.05, 0.2, 0.8))
    assert (near < middle).all()
    assert (middle < far).all()


def test_gradients_reach_the_image_and_no_weight(distance, image):
    moved = (image + 0.1).requires_grad_(True)
    distance(moved, image).sum().backward()
    assert moved.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_it_does_not_change_while_it_measures(distance, image):
    distance.train()
    before = {key: value.clone() for key, value in distance.state_dict().items()}
    distance(image, -image)
    assert not any(module.training for module in distance.modules())
    assert all(torch.equal(value, before[key]) for key, value in distance.state_dict().items())


def test_images_of_other_shapes_are_refused(distance, image):
    for one, other in ((image, image[:2]), (image[:, :1], image[:, :1]), (image[0], image[0])):
        with pytest.raises(ValueError, match=r"two batches of shape \(B, 3, H, W\)"):
            distance(one, other)


@pytest.mark.parametrize("layers", [[], [9], [-1]])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(ValueError, match="has feature maps 0 to 4"):
        TimmDistance("test_resnet", layers=layers)
