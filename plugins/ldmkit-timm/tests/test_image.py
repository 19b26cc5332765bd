"""Any network of timm as a conditioner: its own features, of its own size and normalisation."""

import pytest
import timm
import torch
from ldmkit import CheckpointError
from safetensors.torch import save_file
from torch.nn import functional as F

from ldmkit_timm.image import TimmImage
from ldmkit_timm.network import normalised, reads

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}
NETWORKS = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "test_resnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
}
"""Class tokens, none, channels last, and heads that widen the features behind the last map."""


@pytest.fixture
def image():
    return torch.rand(2, 3, 40, 56) * 2 - 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_vector_is_what_the_network_pools(name, image):
    conditioner = TimmImage(name, arguments=NETWORKS[name])
    theirs = timm.create_model(name, num_classes=0, **NETWORKS[name]).eval()
    theirs.load_state_dict(conditioner.network.state_dict())
    given = conditioner({"image": image}).vector
    torch.testing.assert_close(given, theirs(normalised(image, *reads(theirs, NETWORKS[name]))))
    assert given.shape == (2, conditioner.provides["vector"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_context_is_the_networks_last_feature_map(name, image):
    conditioner = TimmImage(name, arguments=NETWORKS[name], slot="context")
    theirs = timm.create_model(name, num_classes=0, **NETWORKS[name]).eval()
    theirs.load_state_dict(conditioner.network.state_dict(), strict=False)
    x = normalised(image, *reads(theirs, NETWORKS[name]))
    last = theirs.forward_intermediates(x, norm=True, output_fmt="NCHW", intermediates_only=True)[-1]
    given = conditioner({"image": image}).context
    torch.testing.assert_close(given, last.flatten(2).transpose(1, 2))
    assert given.shape[2] == conditioner.provides["context"]


@pytest.mark.parametrize("slot", ["vector", "context"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_network_trains_every_parameter(name, slot, image):
    conditioner = TimmImage(name, arguments=NETWORKS[name], slot=slot, frozen=False)
    (value,) = conditioner({"image": image}).filled().values()
    value.square().sum().backward()
    assert all(p.grad is not None for p in conditioner.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet"])
def test_a_frozen_network_never_changes(name, image):
    conditioner = TimmImage(name, arguments=NETWORKS[name]).train()
    before = {key: value.clone() for key, value in conditioner.state_dict().items()}
    conditioner({"image": image})
    assert not any(p.requires_grad for p in conditioner.parameters())
    assert not any(module.training for module in conditioner.modules())
    assert all(torch.equal(value, before[key]) for key, value in conditioner.state_dict().items())


@pytest.mark.parametrize("slot", ["vector", "context"])
def test_the_null_is_zeros_of_the_same_shape(slot, image):
    conditioner = TimmImage("vit_tiny_patch16_224", arguments=VIT, slot=slot)
    (given,), (null,) = (list(c({"image": image}).filled().values()) for c in (conditioner, conditioner.null))
    assert torch.equal(null, torch.zeros_like(given))


def test_images_are_of_the_networks_own_size_and_statistics():
    assert reads(timm.create_model("test_vit"), {}) == ((160, 160), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert reads(timm.create_model("test_vit", img_size=96), {"img_size": 96})[0] == (96, 96)
    assert reads(timm.create_model("test_vit", img_size=(64, 96)), {"img_size": (64, 96)})[0] == (64, 96)
    x = torch.rand(1, 3, 8, 8)
    own = F.interpolate(x, size=(4, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(normalised(x * 2 - 1, (4, 6), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), own * 2 - 1)


def test_statistics_may_be_given(image):
    own = TimmImage("vit_tiny_patch16_224", arguments=VIT)
    other = TimmImage("vit_tiny_patch16_224", arguments=VIT, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    other.load_state_dict(own.state_dict())
    torch.testing.assert_close(other({"image": image}).vector, own({"image": (image + 1) / 2}).vector)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_read_from_a_file_with_a_classifier(suffix, tmp_path, image):
    theirs = timm.create_model("test_vit").eval()
    path = str(tmp_path / f"weights.{suffix}")
    (save_file if suffix == "safetensors" else torch.save)(theirs.state_dict(), path)
    conditioner = TimmImage("test_vit", source=path)
    x = normalised(image, *reads(theirs, {}))
    torch.testing.assert_close(
        conditioner({"image": image}).vector, theirs.forward_head(theirs.forward_features(x), True)
    )


@pytest.mark.parametrize("classes", [0, 7])
def test_weights_with_another_classifier_or_none_are_read_when_told(classes, tmp_path):
    theirs = timm.create_model("test_vit", num_classes=classes)
    path = str(tmp_path / "weights.safetensors")
    save_file(theirs.state_dict(), path)
    conditioner = TimmImage("test_vit", source=path, arguments={"num_classes": classes})
    want = theirs.state_dict()
    assert all(torch.equal(value, want[name]) for name, value in conditioner.network.state_dict().items())
    with pytest.raises(CheckpointError, match="does not hold the weights of 'test_vit'"):
        TimmImage("test_vit", source=path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = str(tmp_path / "weights.safetensors")
    save_file(timm.create_model("test_vit", depth=2).state_dict(), path)
    with pytest.raises(CheckpointError, match="does not hold the weights of 'test_vit'"):
        TimmImage("test_vit", source=path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "resnet5000"}, ValueError, r"timm has no network 'resnet5000'; timm.list_models"),
        ({"model": "test_vit", "slot": "concat"}, ValueError, "'vector' or 'context', got 'concat'"),
        ({"model": "test_vit", "source": "nowhere"}, CheckpointError, "neither a file nor a hub id"),
        ({"model": "test_vit", "source": 3}, TypeError, "takes source as a string, got int"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        TimmImage(**options)


def test_images_of_another_shape_or_type_are_refused(image):
    conditioner = TimmImage("vit_tiny_patch16_224", arguments=VIT)
    for wrong in (image[0], image[:, :1], (image * 127).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"conditioner 'timm-image' reads batch\['image'\]"):
            conditioner({"image": wrong})
