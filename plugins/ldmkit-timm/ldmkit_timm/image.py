"""Image conditioning with any network of timm: what it sees as one vector, or as tokens, one per patch or cell.

image -> the network's own size and normalisation -> features (B, D, h, w) -> tokens (B, h w, D)
                                                                           -> pooled (B, D)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from ldmkit.conditioners.inputs import real
from ldmkit.conditioning import Batch, Conditioning
from torch import Tensor, nn

from ldmkit_timm.network import network, normalised, reads


class TimmImage(nn.Module):
    """Encodes images with a network of timm.

    The image is resized to the network's own size, without cropping, and normalised by its own statistics.

    Args:
        model: a name of timm's table, such as ``resnet50.a1_in1k``; ``timm.list_models("*dinov2*")`` searches it.
        source: the weights: a file, or a hub id such as ``timm/resnet50.a1_in1k``. They are read once and become part
            of the model. None: random weights.
        arguments: keywords of the network's constructor in timm's words, such as ``{"img_size": 448}``. For a file
            without a classifier ``{"num_classes": 0}``, for one with another ``{"num_classes": its classes}``.
        slot: ``vector`` for the pooled features (B, D), ``context`` for one token per patch or cell of the last
            feature map (B, L, D), row by row and without class tokens.
        key: the batch key of the images.
        mean: of the images that the network was trained on, per channel, in [0, 1]. None: as timm records.
        std: their standard deviation. None: as timm records.
        frozen: keep the network as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``key``: (B, C, H, W) floating point in [-1, 1], of any size. Its null is zeros.

    Raises:
        ValueError: an unknown slot, or a name that timm does not have; in a call, another shape or integers.
        CheckpointError: ``source`` holds other weights.
    """

    filled_by: tuple[str, ...] = ("source",)

    def __init__(
        self,
        model: str,
        *,
        source: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        slot: Literal["vector", "context"] = "vector",
        key: str = "image",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if slot not in ("vector", "context"):
            raise ValueError(f"conditioner 'timm-image' fills the slot 'vector' or 'context', got {slot!r}")
        self.model = model
        self.source = source
        self.arguments = arguments
        self.slot = slot
        self.key = key
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.frozen = frozen
        self.network = network(model, arguments or {}, source, "timm-image")
        width: int = self.network.head_hidden_size
        if slot == "context":
            width = self.network.feature_info[-1]["num_chs"]
            self.network.prune_intermediate_layers(1)
        self._size, own_mean, own_std = reads(self.network, arguments or {})
        self._statistics = self.mean or own_mean, self.std or own_std
        self.reads: tuple[str, ...] = (key,)
        self.provides: Mapping[str, int] = {slot: width}
        if frozen:
            self.requires_grad_(False)
        self.train()

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the images."""
        like = next(self.network.parameters())
        image = real(batch, self.key, ("B", len(self._statistics[0]), "H", "W"), "timm-image")
        x = normalised(image.to(like.device), self._size, *self._statistics).to(like.dtype)
        if self.slot == "vector":
            return Conditioning(vector=self.network(x))
        return Conditioning(context=self._tokens(x))

    def null(self, batch: Batch) -> Conditioning:
        """Zeros of the same shape."""
        encoded = self.forward(batch)
        return encoded.map(lambda value: value.new_zeros(value.shape))

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _tokens(self, x: Tensor) -> Tensor:
        (features,) = self.network.forward_intermediates(x, 1, norm=True, output_fmt="NCHW", intermediates_only=True)
        tokens: Tensor = features.flatten(2).transpose(1, 2)
        return tokens
