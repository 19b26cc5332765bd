"""Windows, what they add up to, and models and first stages that work by them."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import ldmkit
from ldmkit import Conditioning
from ldmkit.first_stages import KL, VQ, Tiled, TiledExact
from ldmkit.guidance import CFG, Autoguidance, Rescale
from ldmkit.placing import by_tiles, by_window
from ldmkit.tiling import Tiles, Window, blended, decoded, encoded, seam, weights

SHAPES = [((20, 20), 8, 3), ((17, 31), 8, 0), ((31, 17), (8, 5), (7, 4)), ((9, 9), 8, 7), ((5, 40), 8, 2)]


@pytest.mark.parametrize(("shape", "size", "overlap"), SHAPES)
def test_windows_cover_the_map_and_share_at_least_the_overlap(shape, size, overlap):
    windows = Tiles(size, overlap).windows(shape)
    covered = torch.zeros(shape)
    for window in windows:
        assert window.top >= 0
        assert window.top + window.height <= shape[0]
        assert window.left + window.width <= shape[1]
        window.of(covered).add_(1)
    assert covered.min() >= 1
    least = overlap if isinstance(overlap, tuple) else (overlap, overlap)
    for axis, starts, lengths in (
        (0, sorted({w.top for w in windows}), windows[0].height),
        (1, sorted({w.left for w in windows}), windows[0].width),
    ):
        assert all(b - a <= lengths - least[axis] for a, b in pairwise(starts))


@pytest.mark.parametrize(("shape", "size", "overlap"), SHAPES)
def test_shares_are_positive_and_sum_to_one(shape, size, overlap):
    windows = Tiles(size, overlap).windows(shape)
    total = torch.zeros(shape)
    for window, share in zip(windows, weights(windows, shape), strict=True):
        assert share.min() > 0
        window.of(total).add_(share)
    torch.testing.assert_close(total, torch.ones(shape), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "size", "overlap"), SHAPES)
def test_what_acts_on_single_places_is_blended_to_itself(shape, size, overlap):
    x = torch.randn(2, 3, *shape)
    windows = Tiles(size, overlap).windows(shape)
    found = blended(windows, weights(windows, shape), lambda k, w: w.of(x).sin(), torch.zeros_like(x))
    torch.testing.assert_close(found, x.sin(), atol=1e-6, rtol=0)


def test_blending_hides_what_differs_between_windows():
    """Windows that each have another brightness: side by side they show a seam, faded into each other they do not."""
    x = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    hard, soft = Tiles(16, 0), Tiles(16, 12)
    seams = []
    for tiles in (hard, soft):
        windows = tiles.windows((64, 64))
        brightness = [0.3 * ((7 * k) % 5) for k in range(len(windows))]
        parts = blended(
            windows,
            weights(windows, (64, 64)),
            lambda k, w, b=brightness: w.of(x) + b[k],
            torch.zeros(1, 1, 64, 64),
        )
        seams.append(seam(parts, windows))
    assert seams[0] > 10
    assert seams[1] < 1.5


def test_a_seam_is_measured_where_it_is():
    smooth = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    windows = Tiles(16).windows((32, 32))
    assert seam(smooth, windows) == pytest.approx(1)
    broken = smooth.clone()
    broken[..., 16:] += 1
    assert seam(broken, windows) > 5
    assert seam(smooth, Tiles(32).windows((32, 32))) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tiles(0), "size of at least 1"),
        (lambda: Tiles(8, 8), "overlap below it"),
        (lambda: Tiles(60, 8).cells(8, 2), "use 48 or 64"),
        (lambda: Tiles(64, 12).cells(8), "no multiple of 8 px"),
    ],
)
def test_tiles_that_do_not_fit_are_refused_with_those_that_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def small_kl():
    torch.manual_seed(0)
    return KL(
        channels=4, base_channels=32, channel_mult=(1, 2), num_res_blocks=1, attn_resolutions=(32,), resolution=64
    )


def small_vq():
    torch.manual_seed(0)
    return VQ(
        channels=3, codebook_size=16, base_channels=32, channel_mult=(1, 2), num_res_blocks=1, attn_resolutions=()
    )


@torch.no_grad()
@pytest.mark.parametrize("make", [small_kl, small_vq])
@pytest.mark.parametrize("tile", [5, 16, 512])
def test_the_exact_first_stage_equals_the_whole(make, tile):
    stage = make().eval()
    exact = TiledExact(stage, tile)
    image = torch.rand(2, 3, 36, 52) * 2 - 1
    z = stage.encode(image)
    torch.testing.assert_close(exact.encode(image), z, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(exact.decode(z), stage.decode(z), atol=5e-5, rtol=1e-5)
    noise = torch.randn_like(z)
    torch.testing.assert_close(exact.encode(image, noise), stage.encode(image, noise), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_in_float64_the_exact_first_stage_is_the_whole_to_the_last_digits():
    """In float32 the two differ by what torch's own norms lose over large maps."""
    stage = small_kl().eval().double()
    z = torch.randn(1, 4, 24, 20, dtype=torch.float64)
    torch.testing.assert_close(TiledExact(stage, 8).decode(z), stage.decode(z), atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_one_window_is_the_whole_to_the_bit():
    stage = small_kl().eval()
    image = torch.rand(1, 3, 24, 40) * 2 - 1
    tiled = Tiled(stage, 64, 8)
    assert torch.equal(tiled.encode(image), stage.encode(image))
    assert torch.equal(tiled.decode(stage.encode(image)), stage.decode(stage.encode(image)))


@torch.no_grad()
def test_windows_of_a_first_stage_without_norms_meet_exactly_where_they_see_enough():
    """With convolutions alone and an overlap of more than they see, the middle of every window is the whole's."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.randn(1, 1, 40, 40)
    tiles = Tiles(16, 4)
    windows = tiles.windows((40, 40))
    whole, found = conv(x), decoded(conv, x, tiles, 1)
    edges = {edge for w in windows for edge in (w.top, w.top + w.height - 1)} - {0, 39}
    inside = [i for i in range(40) if i not in edges]
    torch.testing.assert_close(found[..., inside, :][..., inside], whole[..., inside, :][..., inside])
    assert not torch.allclose(found, whole, atol=1e-4)


@torch.no_grad()
def test_an_image_is_encoded_by_windows_with_the_noise_of_its_places():
    stage = small_kl().eval()
    image, noise = torch.rand(1, 3, 32, 48) * 2 - 1, torch.randn(1, 4, 16, 24)
    mode = encoded(stage.encode, image, None, Tiles(16, 8), 2)
    drawn = encoded(stage.encode, image, noise, Tiles(16, 8), 2)
    assert mode.shape == (1, 4, 16, 24)
    assert not torch.equal(mode, drawn)
    assert torch.equal(drawn, encoded(stage.encode, image, noise, Tiles(16, 8), 2))


@torch.no_grad()
def test_the_overlap_hides_the_borders_of_a_decoder():
    stage = small_kl().eval()
    coarse = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    z = nn.functional.interpolate(coarse, size=(48, 48), mode="bicubic")
    hard, soft = Tiled(stage, 32, 0), Tiled(stage, 32, 16)
    whole, borders = stage.decode(z), Tiles(32, 0).windows((96, 96))
    assert seam(whole, borders) == pytest.approx(1, abs=0.3)
    assert seam(hard.decode(z), borders) > 1.4
    assert seam(soft.decode(z), Tiles(32, 16).windows((96, 96))) < 1.3


class Watched(nn.Module):
    """A first stage that records what it is asked for."""

    factor = channels = image_channels = 1

    def __init__(self):
        super().__init__()
        self.seen = []

    def encode(self, image, noise=None):
        self.seen.append(tuple(image.shape[-2:]))
        return image

    def decode(self, z):
        self.seen.append(tuple(z.shape[-2:]))
        return z


def test_the_wrapped_stage_never_sees_more_than_a_window():
    stage = Watched()
    tiled = Tiled(stage, (16, 24), 4)
    image = torch.randn(1, 1, 70, 50)
    torch.testing.assert_close(tiled.decode(tiled.encode(image)), image, atol=1e-6, rtol=0)
    assert set(stage.seen) == {(16, 24)}


def test_windows_are_added_in_float32_whatever_the_precision():
    z = torch.randn(1, 1, 40, 40).bfloat16()
    assert torch.equal(Tiled(Watched(), 16, 8).decode(z), z)


@torch.no_grad()
def test_where_the_exact_first_stage_keeps_its_maps_changes_nothing():
    stage = small_kl().eval()
    z = torch.randn(1, 4, 12, 10)
    assert torch.equal(TiledExact(stage, 8, store="cpu").decode(z), TiledExact(stage, 8).decode(z))


@torch.no_grad()
def test_the_exact_first_stage_is_no_worse_than_the_whole_in_bfloat16():
    stage = small_kl().eval()
    z = torch.randn(1, 4, 12, 10)
    right = stage.decode(z)
    exact, whole = (made.bfloat16().decode(z.bfloat16()).float() for made in (TiledExact(stage, 8), stage))
    assert (exact - right).square().mean() < 1.5 * (whole - right).square().mean()


@torch.no_grad()
def test_the_exact_first_stage_leaves_its_stage_as_it_was():
    stage = small_kl().eval()
    encoder, decoder = stage.encoder, stage.decoder
    exact = TiledExact(stage, 8)
    exact.decode(torch.randn(1, 4, 12, 10))
    assert stage.encoder is encoder
    assert stage.decoder is decoder
    assert all(key.removeprefix("of.") in stage.state_dict() for key in exact.state_dict())


def test_a_wrapper_saves_and_composes_as_any_first_stage(tmp_path):
    stage = ldmkit.build("first-stage", "tiled", of=ldmkit.build("first-stage", "pixel"), tile=8, overlap=2)
    model = ldmkit.LatentDiffusion(first_stage=stage, backbone=backbone(), process=ldmkit.build("process", "vp"))
    model.eval().save(tmp_path / "m.safetensors")
    again = ldmkit.load(tmp_path / "m.safetensors")
    assert (again.stage.tile, again.stage.overlap) == (8, 2)
    with pytest.raises(TypeError, match="wraps a first stage"):
        Tiled(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="use 'tiled'"):
        TiledExact(ldmkit.build("first-stage", "pixel"))


UNET = {"channels": 3, "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_resolutions": []}


def backbone(**options):
    torch.manual_seed(0)
    unet = ldmkit.build("backbone", "unet", **{**UNET, "num_heads": 1, **options})
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return unet


def model(conditioner=None, **options):
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel"),
        backbone=backbone(**options),
        process=ldmkit.build("process", "vp"),
        conditioner=conditioner,
    ).eval()


def test_a_tile_as_large_as_the_image_changes_nothing():
    whole = model()
    plain = whole.sample(size=(12, 16), levels=3)
    assert torch.equal(whole.sample(size=(12, 16), levels=3, tiles=Tiles(16, 4)), plain)


@pytest.mark.parametrize("size", [(32, 64), (96, 34), (8, 40)])
def test_a_model_samples_sizes_that_it_was_never_trained_at(size):
    """Sides need only be multiples of what the network takes, and an image still belongs to its seed."""
    whole = model(attention_resolutions=[2])
    z = whole.sample(size=size, levels=2, seed=[5, 6])
    assert z.shape == (2, 3, *size)
    torch.testing.assert_close(z[1:], whole.sample(size=size, levels=2, seed=6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp-2m"])
def test_denoising_by_tiles_is_any_size_and_belongs_to_its_seed(sampler):
    whole = model()
    call = {"size": (20, 44), "levels": 3, "tiles": Tiles(16, 4), "sampler": ldmkit.build("sampler", sampler)}
    both = whole.sample(seed=[3, 4], **call)
    assert both.shape == (2, 3, 20, 44)
    torch.testing.assert_close(both[1:], whole.sample(seed=4, **call), atol=1e-4, rtol=0)


class Local(nn.Module):
    """A network that looks at single places: by tiles it is what it is as a whole."""

    channels, multiple = 3, 2

    def __init__(self, **accepts):
        super().__init__()
        self.accepts = accepts
        self.mix = nn.Conv2d(3 + accepts.get("concat", 0), 3, 1)
        self.read = nn.Linear(accepts.get("context", 1), 3)

    def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
        told = 0 if context is None else self.read(context).mean(1)[:, :, None, None]
        return self.mix(x).sin() + told


def local(conditioner, **accepts):
    torch.manual_seed(0)
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel"),
        backbone=Local(**accepts),
        process=ldmkit.build("process", "vp"),
        conditioner=conditioner,
    ).eval()


def test_channels_are_cut_with_the_state_guided_or_not():
    whole = local(ldmkit.build("conditioner", "masked-image", channels=3), concat=4)
    batch = {"masked_image_latent": torch.randn(2, 3, 20, 28), "mask": torch.rand(2, 1, 20, 28).round()}
    for guidance in (None, CFG(3.0)):
        call = {"size": (20, 28), "levels": 4, "guidance": guidance}
        plain = whole.sample(batch, **call)
        torch.testing.assert_close(whole.sample(batch, tiles=Tiles(8, 4), **call), plain, atol=1e-4, rtol=1e-4)


def layout():
    torch.manual_seed(0)
    return ldmkit.build(
        "conditioner", "layout", classes=3, width=8, depth=1, tokens=64, max_objects=2, heads=2, head_width=4
    )


def test_every_tile_is_told_the_layout_of_its_place():
    conditioner = layout()
    whole = local(conditioner, context=8)
    batch = {"boxes": [[(1, 0.0, 0.0, 0.4, 0.4)]]}
    tiled = whole.sample(batch, size=(8, 32), levels=3, tiles=Tiles(16, 0), guidance=CFG(2.0))
    for left in (0, 16):
        alone = whole.sample(
            {**batch, "crop": [(left / 32, 0.0, (left + 16) / 32, 1.0)]},
            size=(8, 16),
            levels=3,
            start=start(whole, (8, 32))[..., left : left + 16],
            guidance=CFG(2.0),
        )
        torch.testing.assert_close(tiled[..., left : left + 16], alone, atol=1e-5, rtol=0)


def test_the_negative_layout_is_that_of_the_tile_too():
    whole = local(layout(), context=8)
    batch, negative = {"boxes": [[(1, 0.0, 0.0, 0.4, 0.4)]]}, {"boxes": [[(2, 0.5, 0.0, 1.0, 1.0)]]}
    call = {"levels": 3, "guidance": CFG(2.0)}
    tiled = whole.sample(batch, negative=negative, size=(8, 32), tiles=Tiles(16, 0), **call)
    for left in (0, 16):
        crop = {"crop": [(left / 32, 0.0, (left + 16) / 32, 1.0)]}
        at = start(whole, (8, 32))[..., left : left + 16]
        alone = whole.sample({**batch, **crop}, negative={**negative, **crop}, size=(8, 16), start=at, **call)
        torch.testing.assert_close(tiled[..., left : left + 16], alone, atol=1e-5, rtol=0)


def test_two_sources_that_know_places_are_each_told_theirs():
    class Here(nn.Module):
        reads = ("spot",)
        provides = {"context": 8}  # noqa: RUF012 - part of the protocol

        def forward(self, batch):
            return Conditioning(context=batch["spot"][:, None, None].expand(-1, 1, 8).clone())

        def null(self, batch):
            return self(batch).map(torch.zeros_like)

        def placed(self, batch, region):
            return {"spot": batch["spot"] + region[0]}

    conditioner = ldmkit.Joint({"spot": Here(), "layout": layout()})
    told, _ = by_window(
        lambda batch, negative: (conditioner(batch), None),
        conditioner,
        {"spot": torch.zeros(1), "boxes": [[]]},
        None,
        Tiles(8).windows((8, 16)),
        (8, 16),
    )
    assert told.context[0, 0].eq(0).all()
    right = told.context[0, told.context.shape[1] // 2 :]
    assert right[0].eq(0.5).all()
    torch.testing.assert_close(right[1:], layout()({"boxes": [[]], "crop": [(0.5, 0.0, 1.0, 1.0)]}).context[0])


def test_tiles_that_are_told_the_same_are_bound_once():
    bound = []

    def bind(cond):
        bound.append(cond)
        return lambda x, level: x

    windows = Tiles(8, 2).windows((16, 16))
    by_tiles(bind, windows, (16, 16), split=False)(Conditioning(context=torch.zeros(1, 2, 8)))
    assert len(bound) == 1
    by_tiles(bind, windows, (16, 16), split=False)(Conditioning(concat=torch.zeros(1, 2, 16, 16)))
    assert [cond.concat.shape for cond in bound[1:]] == [(1, 2, 8, 8)] * len(windows)


def start(whole, size):
    """The state that a call with seed 0 begins with."""
    first = []

    def at_stop(x, now):
        first.append(x.clone())
        return x

    whole.sample({"boxes": [[]]}, size=size, levels=1, at_stop=at_stop)
    return first[0].clone()


def test_a_part_of_a_crop_is_a_crop_of_the_picture():
    conditioner = layout()
    inner = conditioner.placed({"boxes": [[]], "crop": [(0.5, 0.0, 1.0, 0.5)]}, (0.5, 0.5, 1.0, 1.0))
    assert inner["crop"] == [(0.75, 0.25, 1.0, 0.5)]


def test_context_that_knows_no_places_is_the_same_for_every_tile():
    class Same(nn.Module):
        reads = ("word",)
        provides = {"context": 8}  # noqa: RUF012 - part of the protocol

        def forward(self, batch):
            return Conditioning(context=torch.ones(len(batch["word"]), 2, 8))

        def null(self, batch):
            return self(batch).map(torch.zeros_like)

    whole = local(Same(), context=8)
    call = {"size": (16, 16), "levels": 3, "guidance": CFG(2.0)}
    plain = whole.sample({"word": ["a"]}, **call)
    torch.testing.assert_close(whole.sample({"word": ["a"]}, tiles=Tiles(8, 2), **call), plain, atol=1e-5, rtol=0)


def test_a_tile_that_the_network_cannot_take_is_refused():
    with pytest.raises(ValueError, match="a tile of 9 px does not fit the model"):
        model().sample(size=(16, 16), levels=2, tiles=Tiles(9, 1))


def test_windows_know_their_place():
    window = Window(2, 4, 6, 8)
    assert window.times(2) == Window(4, 8, 12, 16)
    assert window.region((8, 16)) == (0.25, 0.25, 0.75, 1.0)


def test_autoguidance_and_tiles_are_not_mixed():
    whole = model()
    guidance = Rescale(Autoguidance(model().denoiser, 2.0, CFG(1.0)), 0.5)
    assert whole.sample(size=(16, 16), levels=2, guidance=guidance, tiles=Tiles(16)).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="weaker network on the whole image"):
        whole.sample(size=(16, 32), levels=2, guidance=guidance, tiles=Tiles(16))
