"""Text conditioning learned with the model: a transformer encoder over token ids.

    h_0 = T[token] + P[position],    h <- h + attention(LN(h)),    h <- h + W_2 gelu(W_1 LN(h)),    c = LN(h_2N)

Every token attends to every token, padding included: the published models were trained without a padding mask, so
prompts must be padded to the full length as in training. Turning text into ids is not done here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.conditioners.inputs import indices
from ldmkit.conditioning import Batch, Conditioning


class Tokens(nn.Module):
    """Encodes token ids into a context of one vector per token, with a transformer trained with the model.

    Args:
        vocabulary: V, the number of token ids.
        length: L, the number of tokens of every prompt, padding included.
        width: D, the width of the context.
        depth: N, the number of attention and feed-forward pairs.
        heads: attention heads.
        head_width: width of one head; ``heads * head_width`` need not be D.
        null_tokens: the L ids of the empty prompt. Without them there is no null, so neither dropout nor
            classifier-free guidance.

    Reads ``tokens``: (B, L) integers in [0, V - 1].

    Raises:
        ValueError: sizes below 1, or null tokens that are not L ids below V; in a call, tokens that are not (B, L)
            integers in [0, V - 1].

    Source: arXiv 2112.10752, appendix E.2.1; ``BERTEmbedder`` of the original, whose null is the tokenised "".
    """

    reads: tuple[str, ...] = ("tokens",)

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        depth: int,
        heads: int = 8,
        head_width: int = 64,
        null_tokens: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.length = length
        self.width = width
        self.depth = depth
        self.heads = heads
        self.head_width = head_width
        self.null_tokens = None if null_tokens is None else tuple(null_tokens)
        self.provides: Mapping[str, int] = {"context": width}
        self.has_null = null_tokens is not None
        self.transformer = TokenTransformer(vocabulary, length, width, depth, heads, head_width)
        if self.null_tokens is not None:
            _check_null(self.null_tokens, length, vocabulary)

    def forward(self, batch: Batch) -> Conditioning:
        """Encode ``batch["tokens"]`` into context (B, L, D)."""
        return Conditioning(context=self.transformer(self._tokens(batch)))

    def null(self, batch: Batch) -> Conditioning:
        """The empty prompt, once per image.

        Raises:
            ValueError: the conditioner was built without ``null_tokens``.
        """
        if self.null_tokens is None:
            raise ValueError(
                "conditioner 'tokens' was built without null_tokens and has no null: give the ids of the tokenised "
                f"empty prompt, {self.length} of them, or sample without guidance"
            )
        tokens = self._tokens(batch)
        empty = torch.tensor([self.null_tokens], device=tokens.device)
        return Conditioning(context=self.transformer(empty).expand(tokens.shape[0], -1, -1))

    def _tokens(self, batch: Batch) -> Tensor:
        return indices(batch, "tokens", ("B", self.length), self.vocabulary, "tokens")


class TokenTransformer(nn.Module):
    """Token ids (B, L) to vectors (B, L, D): a pre-norm transformer encoder with learned positions.

    Args:
        vocabulary: V, the number of token ids.
        length: the largest L.
        width: D.
        depth: attention and feed-forward pairs.
        heads: attention heads.
        head_width: width of one head.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, head_width: int) -> None:
        super().__init__()
        sizes = {
            "vocabulary": vocabulary,
            "length": length,
            "width": width,
            "depth": depth,
            "heads": heads,
            "head_width": head_width,
        }
        if min(sizes.values()) < 1:
            raise ValueError(f"a token transformer needs sizes of at least 1, got {sizes}")
        self.token_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = LearnedPositions(length, width)
        self.attn_layers = ResidualBranches(width, depth, heads, head_width)
        self.norm = nn.LayerNorm(width)
        # Published files hold this head although no output depends on it; frozen, or distributed training would wait
        # for a gradient that never comes.
        self.to_logits = nn.Linear(width, vocabulary).requires_grad_(False)
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode (B, L) ids into (B, L, D)."""
        h: Tensor = self.norm(self.attn_layers(self.token_emb(tokens) + self.pos_emb(tokens.shape[1])))
        return h


class LearnedPositions(nn.Module):
    """One learned vector per position: (L, D)."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(length, width)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, length: int) -> Tensor:
        """The first L positions, (L, D)."""
        return self.emb.weight[:length]


class ResidualBranches(nn.Module):
    """``depth`` times attention and feed-forward, each a branch ``h + f(LN(h))``."""

    def __init__(self, width: int, depth: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers.append(nn.ModuleList([nn.LayerNorm(width), SelfAttention(width, heads, head_width)]))
            self.layers.append(nn.ModuleList([nn.LayerNorm(width), FeedForward(width)]))

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        for layer in self.layers:
            norm, branch = layer.children()
            h = h + branch(norm(h))
        return h


class SelfAttention(nn.Module):
    """Multi-head self-attention of inner width ``heads * head_width``, without a mask."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        q, k, v = (self._by_head(project(h)) for project in (self.to_q, self.to_k, self.to_v))
        out: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        B, L, _ = x.shape
        return x.view(B, L, self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """``W_2 gelu(W_1 h)`` with an inner width of 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The original's dropout stood at index 1, which the names in its files count.
        up = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(up, nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        out: Tensor = self.net(h)
        return out


def _check_null(null_tokens: tuple[int, ...], length: int, vocabulary: int) -> None:
    if len(null_tokens) != length or not all(0 <= token < vocabulary for token in null_tokens):
        raise ValueError(
            f"conditioner 'tokens' needs null_tokens as {length} ids in [0, {vocabulary - 1}], got {null_tokens}: pad "
            "the tokenised empty prompt to the full length"
        )
