"""Wrong first stages and wrong backbones."""

import torch
from torch import nn
from torch.nn import functional as F

from wrong.catalogue import caught_by, right


class Unshuffle(nn.Module):
    """Pixels to channels; the posterior's spread is 0.1."""

    factor, channels, image_channels, codebook_size = 2, 4, 1, 7

    def __init__(self, scale=0.5):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def encode(self, image, noise=None):
        self.check(image, self.image_channels)
        if any(side % self.factor for side in image.shape[2:]):
            raise ValueError("sides must be even")
        return self.scale * self.drawn(F.pixel_unshuffle(image, self.factor), noise)

    def drawn(self, mode, noise):
        if noise is not None and noise.shape != mode.shape:
            raise ValueError("one draw per element")
        return mode if noise is None else mode + 0.1 * noise

    def decode(self, z):
        self.check(z, self.channels)
        return F.pixel_shuffle((z / self.scale).round(), self.factor)

    def to_indices(self, z):
        return (z / self.scale).round().mean(dim=1).long()

    def from_indices(self, indices):
        return self.scale * indices[:, None].expand(-1, self.channels, -1, -1)

    def check(self, x, channels):
        if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(f"floating point of shape (B, {channels}, H, W) is wanted")


# Its latents have four free channels and its codes one number: decoding is not decoding a code.
UNSHUFFLE = right(
    "first-stage",
    Unshuffle,
    batch=lambda n: {
        "image": torch.rand(n, 1, 8, 4),
        "noise": torch.randn(n, 4, 4, 2),
        "z": torch.randint(7, (n, 1, 4, 2)).expand(-1, 4, -1, -1) * 0.5,
    },
)


@caught_by("shapes-follow-its-factor", UNSHUFFLE)
class TurnsTheImage(Unshuffle):
    def decode(self, z):
        return super().decode(z).transpose(2, 3)


@caught_by("odd-sides-are-refused", UNSHUFFLE)
class CropsInSilence(Unshuffle):
    def encode(self, image, noise=None):
        self.check(image, self.image_channels)
        height, width = (side // 2 * 2 for side in image.shape[2:])
        return super().encode(image[..., :height, :width], noise)


@caught_by("scale-is-applied-once-and-undone", UNSHUFFLE)
class ScalesTwice(Unshuffle):
    def encode(self, image, noise=None):
        return self.scale * super().encode(image, noise)


@caught_by("scale-is-applied-once-and-undone", UNSHUFFLE)
class DoesNotUndoTheScale(Unshuffle):
    def decode(self, z):
        self.check(z, self.channels)
        return super().decode(z * self.scale)


@caught_by("noise-draws-from-the-posterior", UNSHUFFLE)
class ShiftsWhatItDraws(Unshuffle):
    def drawn(self, mode, noise):
        return super().drawn(mode, noise) if noise is None else 1 + super().drawn(mode, noise)


@caught_by("noise-of-another-shape-is-refused", UNSHUFFLE)
class SharesADraw(Unshuffle):
    def drawn(self, mode, noise):
        return mode if noise is None else mode + 0.1 * noise


@caught_by("codes-come-back", UNSHUFFLE)
class CountsFromOne(Unshuffle):
    def from_indices(self, indices):
        return super().from_indices(indices + 1)


class Plain(nn.Module):
    """One convolution at half the resolution, moved by the time and by the mean of the context."""

    channels, multiple, accepts = 2, 2, {"context": 3}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.time = nn.Linear(2, 2)
        self.told = nn.Linear(3, 2)

    def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
        self.check(x, t, context, context_mask)
        if vector is not None or label is not None:
            raise ValueError("it reads neither vector nor label")
        return self.predicted(x, self.moved(t) + self.told(self.mean(context, context_mask)))

    def predicted(self, x, shift):
        h = self.conv(F.avg_pool2d(x, 2)) + shift[:, :, None, None]
        return x + F.interpolate(h, scale_factor=2.0).tanh()

    def moved(self, t):
        t = t[:, None].to(self.time.weight.dtype) / 100
        return self.time(torch.cat([t.sin(), t.cos()], dim=1))

    def mean(self, context, mask):
        weight = torch.ones_like(context[..., :1]) if mask is None else mask[..., None].to(context.dtype)
        return (context * weight).sum(1) / weight.sum(1)

    def check(self, x, t, context, mask):
        if x.ndim != 4 or x.shape[1] != 2 or not x.is_floating_point() or any(side % 2 for side in x.shape[2:]):
            raise ValueError("the state is floating point of shape (B, 2, H, W) with even sides")
        if t.ndim != 1 or context.ndim != 3 or context.shape[2] != 3:
            raise ValueError("times are (B,), the context is (B, L, 3)")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != context.shape[:2]):
            raise ValueError("the mask is bool of shape (B, L)")


PLAIN = right("backbone", Plain)


@caught_by("predicts-in-the-shape-of-the-state", PLAIN)
class PredictsAVarianceToo(Plain):
    def predicted(self, x, shift):
        return torch.cat([super().predicted(x, shift)] * 2, dim=1)


@caught_by("sides-are-multiples-of-what-it-declares", PLAIN)
class DeclaresLessThanItNeeds(Plain):
    multiple = 1


@caught_by("reads-the-slots-it-accepts", PLAIN)
class DeclaresAVector(Plain):
    def __init__(self):
        super().__init__()
        self.accepts = {"context": 3, "vector": 4}

    def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
        if vector is not None and (vector.ndim != 2 or vector.shape[1] != 4):
            raise ValueError("the vector is (B, 4)")
        return super().forward(x, t, context, context_mask, None, label)


@caught_by("other-slots-are-refused", PLAIN)
class IgnoresALabel(Plain):
    def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
        return super().forward(x, t, context, context_mask, vector)


@caught_by("hidden-tokens-do-not-matter", PLAIN)
class IgnoresTheMask(Plain):
    def mean(self, context, mask):
        return super().mean(context, None)


@caught_by("times-are-real-numbers-one-per-sample", PLAIN)
class RoundsTheTime(Plain):
    def moved(self, t):
        return super().moved(t.floor())


@caught_by("binding-changes-nothing", PLAIN)
class BindsTheNearestTime(Plain):
    def bind(self, cond, times):
        def network(x, t):
            known = min(times, key=lambda other: abs(other - t), default=t)
            return self(x, torch.full((len(x),), known), cond.context, cond.context_mask)

        return network


@caught_by("gradients-reach-the-state", PLAIN)
class CutsTheGradient(Plain):
    def predicted(self, x, shift):
        return super().predicted(x.detach(), shift)
