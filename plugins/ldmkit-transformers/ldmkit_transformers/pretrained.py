"""Networks of transformers: with random weights from a configuration, or with the weights of a folder or hub id.

A configuration is written in transformers' own words (``hidden_size``, ``num_hidden_layers``, ...), those that the
network's configuration class declares. What is read from a place is described the same way, so that the network can be
built again without that place.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from ldmkit import CheckpointError
from transformers import PretrainedConfig, PreTrainedModel

M = TypeVar("M", bound=PreTrainedModel)


def network(
    family: type[M],
    source: str | None,
    config: Mapping[str, Any] | None,
    owner: str,
    *,
    unused: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
) -> M:
    """Build a network from its configuration, or read it.

    Args:
        family: its class.
        source: a folder that ``save_pretrained`` wrote, or a hub id; in float32 whatever the file holds.
        config: or its configuration; exactly one of the two.
        owner: the conditioner's registered name, for messages.
        unused: tensors that ``source`` may lack because the conditioner does not use them.
        options: further keywords of the class.

    Raises:
        TypeError: ``source`` is not a string.
        ValueError: both or neither are given, or ``config`` has words that the network does not know.
        CheckpointError: ``source`` lacks tensors of the network.
        OSError: ``source`` cannot be read.
    """
    options = options or {}
    if (source is None) == (config is None):
        raise ValueError(f"conditioner '{owner}' needs exactly one of source (a folder or hub id) and config")
    if source is None:
        built: M = family(_configuration(family, config or {}, owner), **options)
        return built
    if not isinstance(source, str):
        raise TypeError(f"conditioner '{owner}' takes source as a string, got {type(source).__name__}: pass str(path)")
    read: tuple[M, dict[str, Any]] = family.from_pretrained(
        source, output_loading_info=True, dtype=torch.float32, **options
    )
    model, report = read
    if missing := sorted(set(report["missing_keys"]) - set(unused)):
        raise CheckpointError(
            f"conditioner '{owner}': '{source}' lacks {len(missing)} tensors of {family.__name__} such as "
            f"{missing[:3]}: it holds another network"
        )
    return model


def description(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration that builds the network again: every word of its class, with its value."""
    values = model.config.to_dict()
    return {word: values[word] for word in sorted(_words(type(model.config))) if word in values}


def _configuration(family: type[PreTrainedModel], config: Mapping[str, Any], owner: str) -> PretrainedConfig:
    words = _words(family.config_class)
    if unknown := sorted(set(config) - words):
        raise ValueError(
            f"conditioner '{owner}': unknown words {unknown} in config; those of {family.config_class.__name__} are "
            f"{sorted(words)}"
        )
    return family.config_class(**config)


def _words(family: type[PretrainedConfig]) -> set[str]:
    """The words that describe a network, without those that every configuration has (label names, precision, ...)."""
    return set(inspect.signature(family).parameters) - set(inspect.signature(PretrainedConfig).parameters) - {"kwargs"}
