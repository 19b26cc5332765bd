"""Wrong guidance, wrong tasks and a wrong recipe."""

from dataclasses import dataclass, replace

import torch

from ldmkit.guidance import CFG
from ldmkit.parts import Part, Recipe
from ldmkit.tasks.class_conditional import ClassConditional
from ldmkit.testing import Example
from wrong.catalogue import WRONG, caught_by, right

GUIDED = Example("guidance", "cfg", {"scale": 3.0}, neutral={"scale": 1.0}, per_image="scale")


@caught_by("keeps-the-shape-of-the-state", GUIDED, neutral=None)
class GuidesInFloat64(CFG):
    def __call__(self, bind, cond, uncond, levels):
        denoise = super().__call__(bind, cond, uncond, levels)
        return lambda x, level: denoise(x, level).double()


@caught_by("neutral-value-is-off", GUIDED)
class CountsFromZero(CFG):
    needs_uncond = True

    def __call__(self, bind, cond, uncond, levels):
        scale = self.scale + 1 if isinstance(self.scale, float) else tuple(s + 1 for s in self.scale)
        return CFG(scale)(bind, cond, uncond, levels) if uncond is not None else CFG(2.0)(bind, cond, None, levels)


@caught_by("binds-before-the-first-step", GUIDED)
class BindsAtEachStep(CFG):
    def __call__(self, bind, cond, uncond, levels):
        super().__call__(bind, cond, uncond, levels)
        return lambda x, level: CFG.__call__(self, bind, cond, uncond, levels)(x, level)


@caught_by("says-whether-it-needs-uncond", GUIDED)
class SaysItNeedsNoUncond(CFG):
    needs_uncond = False

    def __call__(self, bind, cond, uncond, levels):
        return CFG(self.scale)(bind, cond, uncond, levels)


@caught_by("says-whether-it-needs-gradients", GUIDED)
class DifferentiatesInSecret(CFG):
    def __call__(self, bind, cond, uncond, levels):
        denoise = super().__call__(bind, cond, uncond, levels)

        def guided(x, level):
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                x0 = denoise(x, level)
                (slope,) = torch.autograd.grad(x0.sum(), x)
            return x0.detach() + 0 * slope

        return guided


@caught_by("scale-may-be-one-per-image", GUIDED)
class TakesTheFirstScale(CFG):
    def __call__(self, bind, cond, uncond, levels):
        scale = self.scale if isinstance(self.scale, float) else self.scale[-1]
        return CFG(scale)(bind, cond, uncond, levels)


@dataclass(frozen=True)
class Labels(ClassConditional):
    """A task that refuses all that is wrong."""

    def prepare(self, inputs):
        try:
            return super().prepare(inputs)
        except RuntimeError as error:
            raise TypeError(f"no label: {error}") from error


LABELS = right("task", Labels, batch=lambda n: {"label": list(range(n))})


@caught_by("fills-what-it-declares", LABELS)
class FillsAnotherKey(Labels):
    fills = ("label", "names")


@caught_by("takes-what-it-declares", LABELS)
class TakesAnotherKeyword(Labels):
    takes = ("class_label",)


@caught_by("prepares-for-training-as-for-sampling", LABELS)
class DropsLabelsInTraining(Labels):
    def prepare(self, inputs):
        return {"label": super().prepare(inputs)["label"] * (not torch.is_inference_mode_enabled())}


@caught_by("missing-input-is-refused", LABELS)
class ImaginesALabel(Labels):
    def prepare(self, inputs):
        return super().prepare({"label": 0, **inputs} if inputs.get("label") is None else inputs)


@caught_by("strange-input-is-refused", LABELS)
class TakesAnything(Labels):
    def prepare(self, inputs):
        strange = not isinstance(inputs.get("label"), list | None)
        return super().prepare({"label": [0]} if strange else inputs)


def pixels(channels=3):
    """A small model of pixels."""
    unet = {"channels": channels, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1}
    unet |= {"attention_resolutions": [], "num_heads": 1}
    return Recipe(Part("pixel"), Part("unet", unet), Part("vp"))


PIXELS = right("recipe", pixels)
WRONG.append((replace(PIXELS, options={"channels": 4}), "composes"))
