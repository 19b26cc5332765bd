"""Wrong conditioners, and through them the checks that every module has."""

import itertools
import time
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from ldmkit.conditioning import Conditioning
from wrong.catalogue import caught_by, right


class DepthMap(nn.Module):
    """Pools a depth map and projects it."""

    reads = ("depth",)

    def __init__(self, factor=2, channels=3):
        super().__init__()
        self.factor, self.channels = factor, channels
        self.provides = {"concat": channels}
        self.project = nn.Conv2d(1, channels, 1)

    def pooled(self, batch):
        depth = batch["depth"]
        if depth.ndim != 4 or depth.shape[1] != 1 or not depth.is_floating_point():
            raise ValueError(f"depth is floating point of shape (B, 1, H, W), got {depth.dtype} {tuple(depth.shape)}")
        return F.avg_pool2d(depth, self.factor)

    def given(self, pooled):
        return self.project(pooled)

    def forward(self, batch):
        return Conditioning(concat=self.given(self.pooled(batch)))

    def null(self, batch):
        return Conditioning(concat=torch.zeros_like(self(batch).concat))


def depths(n):
    return {"depth": torch.rand(n, 1, 8, 4), "names": [f"image {i}" for i in range(n)]}


DEPTH = right("conditioner", DepthMap, batch=depths)


@caught_by("builds", DEPTH)
class DoesNotBuild(DepthMap):
    def __init__(self, factor=2, channels=3):
        raise RuntimeError("no weights")


@caught_by("is-what-its-kind-asks-for", DEPTH)
class HasNoReads(DepthMap):
    reads = property()


@caught_by("runs", DEPTH)
class DoesNotRun(DepthMap):
    def given(self, pooled):
        raise RuntimeError("not today")


@caught_by("unknown-keyword-is-refused", DEPTH)
class SwallowsKeywords(DepthMap):
    def __init__(self, factor=2, channels=3, **ignored):
        super().__init__(factor, channels)


@caught_by("can-be-written-down", DEPTH, options={"factor": 4})
class ForgetsKeyword(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(factor, channels)
        self.pool = factor
        del self.factor

    def pooled(self, batch):
        return F.avg_pool2d(batch["depth"], self.pool) if DepthMap.pooled(_Factor(1), batch) is not None else None


class _Factor:
    def __init__(self, factor):
        self.factor = factor


@caught_by("can-be-written-down", DEPTH)
class SaysAnotherValue(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(2 * factor, channels)


COUNTER = itertools.count()


@caught_by("deterministic", DEPTH)
class Counts(DepthMap):
    def given(self, pooled):
        return self.project(pooled) + next(COUNTER)


@caught_by("leaves-its-inputs-alone", DEPTH)
class WritesOnItsInput(DepthMap):
    def pooled(self, batch):
        return super().pooled({"depth": batch["depth"].mul_(2)})


@caught_by("leaves-its-surroundings-alone", DEPTH)
class DrawsAndForgets(DepthMap):
    def given(self, pooled):
        torch.rand(1)
        return self.project(pooled)


@caught_by("leaves-its-surroundings-alone", DEPTH)
class SeedsWhenBuilt(DepthMap):
    def __init__(self, factor=2, channels=3):
        torch.manual_seed(0)
        super().__init__(factor, channels)


@caught_by("leaves-its-surroundings-alone", DEPTH)
class HidesWarnings(DepthMap):
    def given(self, pooled):
        warnings.simplefilter("ignore", FutureWarning)
        return self.project(pooled)


@caught_by("keeps-nothing-of-a-call", DEPTH)
class RemembersTheLast(DepthMap):
    def given(self, pooled):
        self.last = pooled.detach()
        return self.project(pooled)


LEAK = []


@caught_by("leaves-no-tensors-behind", DEPTH)
class Leaks(DepthMap):
    def given(self, pooled):
        LEAK.append(pooled.detach())
        return self.project(pooled)


SCRATCH = {}


@caught_by("threads-share-it", DEPTH)
class SharesScratch(DepthMap):
    def given(self, pooled):
        SCRATCH["pooled"] = pooled
        if not torch.compiler.is_compiling():
            time.sleep(0.01)
        return self.project(SCRATCH.pop("pooled", pooled))


@caught_by("survives-deepcopy", DEPTH)
class CopiesWithoutWeights(DepthMap):
    def __deepcopy__(self, memo):
        return type(self)(self.factor, self.channels)


@caught_by("survives-pickle", DEPTH)
class HoldsAFunction(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(factor, channels)
        self.activation = lambda x: x


@caught_by("survives-a-file", DEPTH)
class HasWeightsOutsideItsState(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(factor, channels)
        self.gain = 1 + torch.rand((), device="cpu").item()

    def given(self, pooled):
        return self.gain * self.project(pooled)


@caught_by("samples-are-independent", DEPTH)
class CentresTheBatch(DepthMap):
    def given(self, pooled):
        return self.project(pooled - pooled.mean())


@caught_by("finite-stays-finite", DEPTH)
class DividesByTheLargest(DepthMap):
    def given(self, pooled):
        return self.project(pooled / pooled.amax(dim=(1, 2, 3), keepdim=True))


@caught_by("gradients-reach-what-is-trained", DEPTH)
class HasAParameterTooMany(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(factor, channels)
        self.unused = nn.Parameter(torch.ones(1))


@caught_by("frozen-parts-stay-as-they-are", DEPTH)
class WakesItsFrozenPart(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(factor, channels)
        self.frozen = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5)).requires_grad_(False)

    def given(self, pooled):
        return self.project(self.frozen(pooled))


@caught_by("runs-in-float64", DEPTH, dtypes=(torch.float64,))
@caught_by("runs-in-bfloat16", DEPTH, dtypes=(torch.bfloat16,))
class GivesFloat32(DepthMap):
    def given(self, pooled):
        return self.project(pooled).float()


@caught_by("channels-last-changes-nothing", DEPTH)
class AssumesAMemoryLayout(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(factor, channels)
        self.smooth = nn.Conv2d(3, 3, 3, padding=1)

    def given(self, pooled):
        smooth = self.smooth(self.project(pooled))
        _, channels, height, width = smooth.shape
        return smooth.as_strided(smooth.shape, (channels * height * width, height * width, width, 1))


@caught_by("compiling-changes-nothing", DEPTH)
class DoesOtherwiseWhenCompiled(DepthMap):
    def given(self, pooled):
        return self.project(2 * pooled if torch.compiler.is_compiling() else pooled)


@caught_by("wrong-rank-is-refused", DEPTH)
class FlattensWhatItGets(DepthMap):
    def pooled(self, batch):
        return super().pooled({"depth": batch["depth"].flatten(0, -4)})


@caught_by("wrong-width-is-refused", DEPTH)
class TakesTheFirstChannel(DepthMap):
    def pooled(self, batch):
        return super().pooled({"depth": batch["depth"][:, :1] if batch["depth"].ndim == 4 else batch["depth"]})


@caught_by("wrong-dtype-is-refused", DEPTH)
class ComputesBeforeItLooks(DepthMap):
    def pooled(self, batch):
        if not batch["depth"].is_floating_point():
            self.project(batch["depth"].float())
        return super().pooled(batch)


@caught_by("fills-the-slots-it-declares", DEPTH)
class DeclaresAnotherWidth(DepthMap):
    def __init__(self, factor=2, channels=3):
        super().__init__(factor, channels)
        self.provides = {"concat": channels + 1}


@caught_by("reads-the-keys-it-declares", DEPTH)
class ReadsWhatItDoesNotDeclare(DepthMap):
    def forward(self, batch):
        return super().forward(batch) if batch["names"] else None


@caught_by("reads-the-keys-it-declares", DEPTH)
class ListensInSecret(DepthMap):
    def forward(self, batch):
        cond = super().forward(batch)
        return cond.map(torch.abs) if "names" in batch else cond


@caught_by("every-key-it-reads-matters", DEPTH)
class DeclaresWhatItDoesNotRead(DepthMap):
    reads = ("depth", "names")


@caught_by("null-fills-the-same-slots", DEPTH)
class HasASmallerNull(DepthMap):
    def null(self, batch):
        return super().null(batch).map(lambda value: value[:, :1])


@caught_by("null-says-nothing", DEPTH)
class TellsInItsNull(DepthMap):
    def null(self, batch):
        return self(batch)


class Words(nn.Module):
    """Embeds lists of token numbers, padded to the longest."""

    reads = ("words",)

    def __init__(self, width=4):
        super().__init__()
        self.width = width
        self.provides = {"context": width}
        self.embedding = nn.Embedding(10, width)

    def forward(self, batch):
        words = [torch.tensor(sentence, device=self.embedding.weight.device) for sentence in batch["words"]]
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(sentence) for sentence in words], batch_first=True).bool()
        return Conditioning(self.told(self.embedding(nn.utils.rnn.pad_sequence(words, batch_first=True))), mask)

    def told(self, embedded):
        return embedded

    def null(self, batch):
        told = self(batch)
        first = torch.arange(told.context.shape[1]).expand(told.context_mask.shape) == 0
        return Conditioning(torch.zeros_like(told.context), first.to(told.context.device))


WORDS = right("conditioner", Words, batch=lambda n: {"words": [[4, 5, 6, 7][: i + 1] for i in range(n)]})


@caught_by("padding-does-not-matter", WORDS)
class AveragesOverPadding(Words):
    def told(self, embedded):
        return embedded + embedded.mean(dim=1, keepdim=True)
