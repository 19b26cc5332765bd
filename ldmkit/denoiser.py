r"""From what a network outputs to what a sampler needs: the estimate of the clean sample.

Every prediction is linear in state and output. With :math:`x = \alpha x_0 + \sigma \epsilon` and
:math:`r = \sqrt{\alpha^2 + \sigma^2}`,

==========  ===========================================  ==========================================================
prediction  the network is trained on                    the clean sample is
==========  ===========================================  ==========================================================
``eps``     :math:`\epsilon`                             :math:`x / \alpha - (\sigma / \alpha) \cdot out`
``v``       :math:`(\alpha \epsilon - \sigma x_0) / r`   :math:`(\alpha / r^2) \, x - (\sigma / r) \cdot out`
``x0``      :math:`x_0`                                  :math:`out`
``flow``    :math:`\epsilon - x_0`                       :math:`(x - \sigma \cdot out) / (\alpha + \sigma)`
==========  ===========================================  ==========================================================

A :class:`Denoiser` is a backbone with its process and prediction, ``(x, level, cond) -> x0``. Bound to a conditioning
and a list of levels it becomes a :data:`Denoise`, ``(x, level) -> x0``, the only thing a sampler sees. The levels may
belong to another process than the network's: the state is rescaled to the level of equal log-SNR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ldmkit.conditioning import Conditioning
from ldmkit.errors import CompositionError
from ldmkit.process import VP, Level, Levels, Number, Process, log_snr

Denoise = Callable[[Tensor, Level[float]], Tensor]
"""``(x, level) -> x0`` with everything else already bound."""

BoundBackbone = Callable[[Tensor, float], Tensor]
"""``(x, t) -> prediction`` with conditioning and caches of one call already bound."""


@runtime_checkable
class Backbone(Protocol):
    """The raw network: ``(x, t, context, context_mask, vector, label) -> prediction``.

    ``channels`` are those of the state and of the prediction; x carries the concat channels after them. ``accepts``
    maps each slot it reads to its size; H and W must be multiples of ``multiple``.
    """

    channels: int
    accepts: Mapping[str, int]
    multiple: int

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor: ...


@runtime_checkable
class Bindable(Protocol):
    """A backbone that can prepare itself for one call: keys and values, embedding tables, masks."""

    def bind(self, cond: Conditioning, times: Sequence[float]) -> BoundBackbone: ...


@dataclass(frozen=True)
class Prediction:
    """What a network outputs, as two pairs of coefficients.

    Args:
        x0: level -> (a, b) of ``x0 = a * x + b * out``.
        target: level -> (c, d) of ``target = c * x0 + d * eps``.
    """

    x0: Callable[[Level[Any]], tuple[Any, Any]]
    target: Callable[[Level[Any]], tuple[Any, Any]]


def _radius(level: Level[Number]) -> Number:
    radius: Number = (level.alpha**2 + level.sigma**2) ** 0.5
    return radius


PREDICTIONS: Mapping[str, Prediction] = {
    "eps": Prediction(
        x0=lambda at: (1 / at.alpha, -at.sigma / at.alpha),
        target=lambda at: (0.0, 1.0),
    ),
    "v": Prediction(
        x0=lambda at: (at.alpha / _radius(at) ** 2, -at.sigma / _radius(at)),
        target=lambda at: (-at.sigma / _radius(at), at.alpha / _radius(at)),
    ),
    "x0": Prediction(
        x0=lambda at: (0.0, 1.0),
        target=lambda at: (1.0, 0.0),
    ),
    "flow": Prediction(
        x0=lambda at: (1 / (at.alpha + at.sigma), -at.sigma / (at.alpha + at.sigma)),
        target=lambda at: (-1.0, 1.0),
    ),
}


class Denoiser(nn.Module):
    """Backbone + process + prediction: ``(x, level, cond) -> x0``.

    Casts at the network's border: the state and x0 stay in the state's precision, the network runs in its own.

    Args:
        backbone: the raw network.
        process: the forward process it was trained on.
        prediction: what it outputs: ``eps``, ``v``, ``x0`` or ``flow``.

    Raises:
        ValueError: an unknown prediction.
        CompositionError: ``eps`` on a process that reaches alpha = 0, where it says nothing about x0.
    """

    def __init__(self, backbone: Backbone, process: Process, prediction: str = "eps") -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module) or not isinstance(backbone, Backbone):
            raise TypeError(
                f"{type(backbone).__name__} is not a backbone: an nn.Module with channels, accepts, multiple and "
                "forward(x, t, context, context_mask, vector, label)"
            )
        if isinstance(backbone, Bindable) and getattr(type(backbone), "bind", None) is None:
            raise TypeError(
                f"{type(backbone).__name__} wraps a backbone and hides its call from bind, so that sampling would run "
                "the module inside it: compile a backbone in place, backbone.compile()"
            )
        _check_process(process)
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {list(PREDICTIONS)}, got {prediction!r}")
        if prediction == "eps" and process.level(process.t_max).alpha == 0:
            raise CompositionError(
                f"prediction 'eps' is undefined at alpha = 0, which {process} reaches at t = {process.t_max:g}: "
                "train with 'v', 'x0' or 'flow', or choose a process that keeps some signal"
            )
        self.backbone = backbone
        self.process = process
        self.prediction = prediction

    def predict(self, x: Tensor, level: Level[Tensor], cond: Conditioning) -> Tensor:
        """The raw output for one level per sample, float32 at least: what the loss compares.

        Args:
            x: (B, C, H, W) state of this denoiser's own process.
            level: per sample.
            cond: B samples.
        """
        dtype = precision(self.backbone)
        x_in = (x * self.process.input_scale(level)).to(dtype)
        if cond.concat is not None:
            x_in = torch.cat([x_in, cond.concat.to(dtype)], dim=1)
        out: Tensor = self.backbone(
            x_in, level.t, _cast(cond.context, dtype), cond.context_mask, _cast(cond.vector, dtype), cond.label
        )
        return out.to(x.dtype)

    def forward(self, x: Tensor, level: Level[Tensor], cond: Conditioning) -> Tensor:
        """The estimate of x0, (B, C, H, W), for one level per sample."""
        a, b = PREDICTIONS[self.prediction].x0(level)
        x0: Tensor = a * x + b * self.predict(x, level, cond)
        return x0

    def bind(self, cond: Conditioning, levels: Levels) -> Denoise:
        """Everything that one call can compute once: see :class:`BoundDenoiser`."""
        return BoundDenoiser(self, cond, levels)


@dataclass(frozen=True)
class _Stop:
    """What one level needs: the time told to the network, the scale of its input, and ``x0 = a x + b out``."""

    t: float
    scale: float
    a: float
    b: float


class BoundDenoiser:
    """A :data:`Denoise` for one call: coefficients of every level, caches of the backbone, the input's buffer.

    Holds all that a call needs and nothing of it is stored on a module, so that calls in several threads share one
    network. Valid for one batch size, the one of ``cond``.
    """

    def __init__(self, denoiser: Denoiser, cond: Conditioning, levels: Levels) -> None:
        self._process = denoiser.process
        self._moved = levels.process != denoiser.process
        self.prediction = denoiser.prediction
        self._prediction = PREDICTIONS[denoiser.prediction]
        self._dtype = precision(denoiser.backbone)
        self._concat = None if cond.concat is None else cond.concat.to(self._dtype)
        self._buffer: Tensor | None = None
        self._stops = {level: self._stop(level) for level in levels.stops}
        times = list(dict.fromkeys(stop.t for stop in self._stops.values()))
        self._network = bind(cast(nn.Module, denoiser.backbone), _network_conditioning(cond, self._dtype), times)

    def __call__(self, x: Tensor, level: Level[float]) -> Tensor:
        """The estimate of x0, (B, C, H, W) in x's dtype; a new tensor."""
        stop = self._stops.get(level) or self._stop(level)
        out = self._network(self._input(x, stop.scale), stop.t).to(x.dtype)
        if stop.a == 0 and stop.b == 1:
            return out
        return (x * stop.a).add_(out, alpha=stop.b)

    def _stop(self, level: Level[float]) -> _Stop:
        """Time and input scale are the network's own; the coefficients hold on any process of equal log-SNR."""
        own = self._process.level(self._process.time(log_snr(level))) if self._moved else level
        rescale = _radius(own) / _radius(level) if self._moved else 1.0
        return _Stop(own.t, rescale * self._process.input_scale(own), *self._prediction.x0(level))

    def _input(self, x: Tensor, scale: float) -> Tensor:
        if self._concat is None:
            return (x if scale == 1 else x * scale).to(self._dtype)
        if torch.is_grad_enabled():
            return torch.cat([(x * scale).to(self._dtype), self._concat], dim=1)
        channels = x.shape[1]
        if self._buffer is None:
            self._buffer = torch.cat([x.to(self._dtype), self._concat], dim=1)
        state = self._buffer[:, :channels]
        state.copy_(x)
        if scale != 1:
            state.mul_(scale)
        return self._buffer


def bind(backbone: nn.Module, cond: Conditioning, times: Sequence[float]) -> BoundBackbone:
    """Bind a backbone for one call; one without a ``bind`` of its own is called with the conditioning each step."""
    if isinstance(backbone, Bindable):
        return backbone.bind(cond, times)

    @cache
    def time(t: float, batch: int, device: torch.device) -> Tensor:
        return torch.full((batch,), t, dtype=torch.float32, device=device)

    def network(x: Tensor, t: float) -> Tensor:
        out: Tensor = backbone(
            x, time(t, x.shape[0], x.device), cond.context, cond.context_mask, cond.vector, cond.label
        )
        return out

    return network


class DenoisingLoss(nn.Module):
    r"""The denoising objective, per sample.

    .. math::
        w_s \, (\ell / e^{g_t} + g_t) + w_e \, \lambda_t \, \ell, \qquad
        \ell = \mathrm{mean}_{chw}\, |out - target|^p

    with g_t a log-variance per time (0 by default) and lambda_t the weight of the variational bound.

    Args:
        norm: ``l2`` (p = 2) or ``l1`` (p = 1).
        simple_weight: w_s, the original's ``l_simple_weight``.
        elbo_weight: w_e, the original's ``original_elbo_weight``.
        min_snr: gamma of the Min-SNR weight min(snr, gamma) / snr, in terms of the prediction's own loss; None: none.
        learn_log_variance: make g_t a parameter; it then needs to be given to the optimizer with the rest.
        times: the length of g_t; needed to learn it.

    Raises:
        ValueError: an unknown norm, or a learned log-variance without ``times``.

    Source: Rombach et al. 2022, appendix B; Ho et al. 2020, eq. 12 and 14.
    """

    def __init__(
        self,
        norm: str = "l2",
        simple_weight: float = 1.0,
        elbo_weight: float = 0.0,
        learn_log_variance: bool = False,
        times: int | None = None,
        min_snr: float | None = None,
    ) -> None:
        super().__init__()
        if min_snr is not None and not min_snr > 0:
            raise ValueError(
                f"min_snr is the largest signal-to-noise ratio that weighs more and positive, got {min_snr}"
            )
        if norm not in ("l1", "l2"):
            raise ValueError(f"the denoising loss knows the norms 'l1' and 'l2', got {norm!r}")
        if learn_log_variance and times is None:
            raise ValueError("a learned log-variance has one entry per time: pass times=process.table")
        self.norm = norm
        self.simple_weight = simple_weight
        self.elbo_weight = elbo_weight
        self.learn_log_variance = learn_log_variance
        self.times = times
        self.min_snr = min_snr
        self.log_variance = nn.Parameter(torch.zeros(times), learn_log_variance) if times is not None else None

    def distance(self, out: Tensor, target: Tensor) -> Tensor:
        """l, the mean over (C, H, W): (B,)."""
        difference = (out - target).abs() if self.norm == "l1" else (out - target) ** 2
        return difference.flatten(1).mean(1)

    def forward(
        self, out: Tensor, target: Tensor, t: Tensor, elbo: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """The loss per sample, (B,).

        Args:
            out: (B, C, H, W) network output.
            target: (B, C, H, W) what it should be.
            t: (B,) times, int64 where there is a log-variance.
            elbo: (B,) lambda_t; needed when elbo_weight is not 0.
        """
        distance = self.distance(out, target)
        loss = self.simple_weight * distance
        if self.log_variance is not None:
            g = self.log_variance[t]
            loss = self.simple_weight * (distance / g.exp() + g)
        if self.elbo_weight:
            if elbo is None:
                raise ValueError("elbo_weight is not 0, but no weights of the bound were given: use elbo_weights()")
            loss = loss + self.elbo_weight * elbo * distance
        return loss if weight is None else weight * loss


def min_snr_weights(level: Level[Tensor], prediction: str, gamma: float) -> Tensor:
    r"""min(snr, gamma) on the loss in x0, as a weight on the prediction's own loss, (B,).

    With :math:`snr = \alpha^2 / \sigma^2`: ``eps`` min(snr, gamma) / snr; ``v`` min(snr, gamma) / (snr + 1); ``x0``
    min(snr, gamma).

    Raises:
        CompositionError: the prediction ``flow``.

    Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4.
    """
    snr = ((level.alpha / level.sigma) ** 2).flatten()
    share = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}
    if prediction not in share:
        raise CompositionError(f"Min-SNR weights are defined for eps, v and x0, not for {prediction!r}: min_snr=None")
    return snr.clamp(max=gamma) / share[prediction]


def elbo_weights(process: Process, prediction: str) -> Tensor:
    r"""lambda_t, the weight of the variational bound on the simple loss, float64 (T,); entry 0 copies entry 1.

    ``eps``: :math:`\beta_t^2 / (2 \tilde\beta_t (1 - \beta_t)(1 - \bar\alpha_t))`. ``x0``: the original's
    :math:`0.5 \sqrt{\bar\alpha_t} / (2 - \bar\alpha_t)`, whose denominator is a slip of precedence that its models were
    trained with. ``v``: 1.

    Raises:
        CompositionError: a process without a table of betas, or the prediction ``flow``.

    Source: Ho et al. 2020, eq. 12; Stable Diffusion 2 for ``v``.
    """
    if not isinstance(process, VP) or process.zero_terminal_snr or prediction == "flow":
        raise CompositionError(
            f"the variational weights are defined on the betas of process 'vp' with eps, x0 or v; got {process} with "
            f"'{prediction}': set elbo_weight=0"
        )
    alpha_bar, beta = process.alpha_bar, process.beta
    if prediction == "v":
        return torch.ones_like(beta)
    if prediction == "x0":
        weights = 0.5 * alpha_bar.sqrt() / (2 - alpha_bar)
    else:
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        posterior = beta * (1 - before) / (1 - alpha_bar)
        weights = beta**2 / (2 * posterior * (1 - beta) * (1 - alpha_bar))
    weights[0] = weights[1]
    return weights


def _check_process(process: object) -> None:
    if not isinstance(process, Process):
        hint = f": ldmkit.build('process', {process!r})" if isinstance(process, str) else ""
        raise TypeError(f"{process!r} is not a process{hint}")


def precision(module: object) -> torch.dtype:
    """The precision a network runs in: that of its floating-point parameters."""
    parameters = (p for p in cast(nn.Module, module).parameters() if p.is_floating_point())
    first = next(parameters, None)
    return torch.float32 if first is None else first.dtype


def _cast(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(dtype)


def _network_conditioning(cond: Conditioning, dtype: torch.dtype) -> Conditioning:
    """What the backbone itself reads: everything but concat, floats in its precision."""
    return Conditioning(
        context=_cast(cond.context, dtype),
        context_mask=cond.context_mask,
        vector=_cast(cond.vector, dtype),
        label=cond.label,
    )
