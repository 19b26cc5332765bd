"""The conditioning record: joining, batching, dropping, and named sources."""

import pytest
import torch
from torch import nn

from ldmkit.conditioning import Conditioning, Joint, batch, join, where
from ldmkit.errors import BatchError, CompositionError


class Fixed(nn.Module):
    """Gives what it was built with; null is zeros."""

    def __init__(self, provides, reads=(), **slots):
        super().__init__()
        self.provides, self.reads, self.slots = provides, reads, slots

    def forward(self, batch):
        return Conditioning(**self.slots)

    def null(self, batch):
        return Conditioning(**self.slots).map(torch.zeros_like)


def text(tokens=3, width=8, size=2):
    return Fixed({"context": width}, context=torch.randn(size, tokens, width))


def test_joining_puts_tokens_vectors_and_channels_in_order():
    a = Conditioning(context=torch.ones(2, 3, 4), vector=torch.ones(2, 5), concat=torch.ones(2, 1, 2, 2))
    b = Conditioning(context=torch.zeros(2, 2, 4), vector=torch.zeros(2, 1), concat=torch.zeros(2, 3, 2, 2))
    joined = join([a, b])
    assert joined.context.shape == (2, 5, 4)
    assert joined.context[:, :3].min() == 1
    assert joined.vector.shape == (2, 6)
    assert joined.concat.shape == (2, 4, 2, 2)
    assert joined.context_mask is None


def test_a_missing_mask_joins_as_ones():
    masked = Conditioning(context=torch.ones(2, 2, 4), context_mask=torch.tensor([[True, False]] * 2))
    joined = join([Conditioning(context=torch.ones(2, 1, 4)), masked])
    assert joined.context_mask.tolist() == [[True, True, False]] * 2


def test_two_labels_and_two_widths_are_refused():
    with pytest.raises(CompositionError, match="2 conditioners provide a label"):
        join([Conditioning(label=torch.zeros(2, dtype=torch.int64))] * 2)
    with pytest.raises(CompositionError, match=r"\[4, 6\]"):
        join([Conditioning(context=torch.ones(2, 1, 4)), Conditioning(context=torch.ones(2, 1, 6))])


def test_batching_pads_unequal_context_with_a_mask():
    stacked = batch([Conditioning(context=torch.ones(1, 2, 4)), Conditioning(context=torch.ones(1, 5, 4))])
    assert stacked.context.shape == (2, 5, 4)
    assert stacked.context_mask.sum(1).tolist() == [2, 5]


def test_batching_refuses_different_slots():
    with pytest.raises(ValueError, match="different slots"):
        batch([Conditioning(context=torch.ones(1, 2, 4)), Conditioning(vector=torch.ones(1, 2))])


def test_where_chooses_per_sample():
    keep = torch.tensor([True, False])
    cond = Conditioning(context=torch.ones(2, 2, 4), label=torch.tensor([3, 4]))
    null = Conditioning(context=torch.zeros(2, 2, 4), label=torch.tensor([9, 9]))
    chosen = where(keep, cond, null)
    assert chosen.label.tolist() == [3, 9]
    assert chosen.context[0].min() == 1
    assert chosen.context[1].max() == 0


def test_guidance_drops_only_the_guided_sources():
    joint = Joint({"text": text(), "edge": Fixed({"concat": 1}, concat=torch.ones(2, 1, 4, 4))}, guided=["text"])
    uncond = joint.null({})
    assert uncond.context.abs().max() == 0
    assert uncond.concat.min() == 1


def test_each_source_is_dropped_on_its_own_before_joining():
    joint = Joint({"a": text(2), "b": text(3)}, drop={"a": 0.5})
    keep = {"a": torch.tensor([True, False])}
    cond = joint.dropped({}, keep)
    assert cond.context[1, :2].abs().max() == 0
    assert cond.context[1, 2:].abs().min() > 0
    assert cond.context[0, :2].abs().min() > 0


def test_a_missing_batch_key_names_the_source_that_reads_it():
    joint = Joint({"depth": Fixed({"concat": 1}, reads=("depth",), concat=torch.ones(1, 1, 2, 2))})
    with pytest.raises(BatchError, match=r"source 'depth' \(Fixed\) reads \['depth'\]"):
        joint({"image": None})


def test_joint_declares_what_its_sources_provide_together():
    joint = Joint({"a": text(width=8), "b": text(width=8), "c": Fixed({"concat": 2}), "d": Fixed({"concat": 1})})
    assert joint.provides == {"context": 8, "concat": 3}


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ({"a": text(width=8), "b": text(width=4)}, {}, "equal width"),
        ({"a": Fixed({"label": 3}), "b": Fixed({"label": 3})}, {}, "both provide a label"),
        ({"a": text()}, {"drop": {"b": 0.1}}, "no source 'b'"),
        ({"a": text()}, {"guided": ["b"]}, "no source 'b'"),
        ({"a": Fixed({"depth": 3})}, {}, "unknown slots"),
    ],
)
def test_a_wrong_joint_is_refused(sources, options, message):
    with pytest.raises(CompositionError, match=message):
        Joint(sources, **options)


def test_a_drop_rate_is_a_share():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Joint({"a": text()}, drop={"a": 1.5})


def test_a_module_that_is_no_conditioner_is_refused():
    with pytest.raises(TypeError, match="reads, provides"):
        Joint({"a": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"context": torch.ones(2, 3)}, "rank 3"),
        ({"label": torch.ones(2)}, "int64"),
        ({"context_mask": torch.ones(2, 3, dtype=torch.bool)}, "does not fit context"),
        ({"context": torch.ones(2, 3, 4), "context_mask": torch.ones(2, 3)}, "needs bool"),
        ({"context": torch.ones(2, 3, 4), "vector": torch.ones(3, 4)}, "batch size"),
    ],
)
def test_a_malformed_record_is_refused(slots, message):
    with pytest.raises(ValueError, match=message):
        Conditioning(**slots)
