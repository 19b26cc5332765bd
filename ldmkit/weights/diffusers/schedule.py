"""The forward process and the customary levels, from a ``scheduler_config.json``.

That file mixes two things. The betas and the prediction belong to the trained model and become its process; how a run
is spaced over them belongs to sampling and becomes a :class:`Spacing`:

=============  ============================================================================
``leading``    ``offset + i floor(T / n)``, i = n - 1 ... 0
``trailing``   ``round(T - i T / n) - 1``, i = 0 ... n - 1
``linspace``   n even times from T - 1 to 0, both included
=============  ============================================================================

With ``leading``, an offset of 1 and a landing on index 0, which every Stable Diffusion folder says, this is
:func:`ldmkit.process.uniform` wherever n divides T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.parts import Part
from ldmkit.process import VP, Levels, Process, at
from ldmkit.weights.diffusers.words import Words, class_of, count, number

BETAS = {"scaled_linear": "scaled-linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
COMMON: Words = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "steps_offset": 0,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "use_flow_sigmas": False,
}
CLASSES: Mapping[str, Words] = {
    "DDIMScheduler": {"timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True},
    "DDPMScheduler": {"timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True},
    "PNDMScheduler": {"timestep_spacing": "leading", "set_alpha_to_one": False},
    "LMSDiscreteScheduler": {"timestep_spacing": "linspace", "set_alpha_to_one": True},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace", "set_alpha_to_one": True},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "linspace", "set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace", "set_alpha_to_one": True},
}
"""Class -> where its defaults differ from :data:`COMMON`. ``set_alpha_to_one``: whether it lands on the clean level."""


@dataclass(frozen=True)
class Spacing:
    """How a folder's own sampler spaces its steps.

    Args:
        spacing: ``leading``, ``trailing`` or ``linspace``.
        offset: what ``leading`` adds to every time.
        clean: the last step lands on the clean level; False: on index 0 of the table.

    Raises:
        ValueError: another spacing.
    """

    spacing: str = "leading"
    offset: int = 0
    clean: bool = True

    def __post_init__(self) -> None:
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"levels are spaced leading, trailing or linspace, got {self.spacing!r}")

    def levels(self, process: Process, n: int) -> Levels:
        """The levels of a run with n steps.

        Args:
            process: the model's, with a table.
            n: steps, 1 to as many as the table has entries.

        Raises:
            ValueError: n out of range, a process without a table, or an offset that leads beyond it.
        """
        total = process.table
        if total is None or not 1 <= n <= total:
            raise ValueError(f"{self} spaces 1 to {total} steps over a table of times, got {n} for {process}")
        times = self._times(total, n)
        if times[0] > total - 1:
            raise ValueError(
                f"{self} would begin at time {times[0]} of a table of {total}: ask for fewer than {n} steps"
            )
        landing = process.clean if self.clean else process.level(process.t_min)
        return at(process, times, landing)

    def _times(self, total: int, n: int) -> list[int]:
        match self.spacing:
            case "leading":
                return [i * (total // n) + self.offset for i in reversed(range(n))]
            case "trailing":
                return [round(total - i * total / n) - 1 for i in range(n)]
        return [round((total - 1) * i / max(n - 1, 1)) for i in reversed(range(n))]

    def to_json(self) -> dict[str, Any]:
        """The spacing as a mapping: what a recipe's notes hold."""
        return asdict(self)


@dataclass(frozen=True)
class Schedule:
    """What a ``scheduler_config.json`` says.

    Args:
        process: the forward process.
        prediction: what the network outputs: ``eps``, ``v`` or ``x0``.
        spacing: the sampler's levels.
        clip: the sampler clips x0 to [-clip, clip]; None: it does not.
    """

    process: Part
    prediction: str
    spacing: Spacing
    clip: float | None


def schedule(where: str, given: Words) -> Schedule:
    """Read the words of a scheduler.

    Raises:
        CheckpointError: a class, table of betas, prediction or spacing that has no place here.
    """
    words = {**COMMON, **CLASSES[class_of(where, given, CLASSES)], **given}
    known: dict[str, list[Any]] = {
        "beta_schedule": [*BETAS],
        "prediction_type": [*PREDICTIONS],
        "trained_betas": [None],
        "use_flow_sigmas": [False],
        "rescale_betas_zero_snr": [False, True],
        "timestep_spacing": ["leading", "trailing", "linspace"],
    }
    for word, values in known.items():
        if words[word] not in values:
            raise CheckpointError(f"{where} says {word}={words[word]!r:.80}; ldmkit has a place for {values}")
    clip = number(where, words, "clip_sample_range") if words["clip_sample"] else None
    offset = count(where, words, "steps_offset", smallest=0)
    spacing = Spacing(words["timestep_spacing"], offset, bool(words["set_alpha_to_one"]))
    return Schedule(_process(where, words), PREDICTIONS[words["prediction_type"]], spacing, clip)


def _process(where: str, words: Words) -> Part:
    betas = BETAS[words["beta_schedule"]]
    options: dict[str, Any] = {"betas": betas, "steps": count(where, words, "num_train_timesteps", smallest=2)}
    if betas != "cosine":
        options |= {"start": number(where, words, "beta_start"), "end": number(where, words, "beta_end")}
    return Part("vp", {**options, "zero_terminal_snr": words["rescale_betas_zero_snr"]})


def schedule_config(process: Process, prediction: str) -> dict[str, Any]:
    """The words of a ``DDIMScheduler`` whose levels are :func:`ldmkit.process.uniform`.

    Raises:
        CompositionError: a process or prediction that has no form there.
    """
    betas = {ours: theirs for theirs, ours in BETAS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if not isinstance(process, VP) or process.betas not in betas or prediction not in predictions:
        raise CompositionError(
            f"process {process} with prediction '{prediction}' has no form in diffusers: it has VP processes with "
            f"betas {sorted(betas)} and predictions {sorted(predictions)}"
        )
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": process.steps,
        "beta_schedule": betas[process.betas],
        "beta_start": 0.0015 if process.start is None else process.start,
        "beta_end": 0.0195 if process.end is None else process.end,
        "prediction_type": predictions[prediction],
        "rescale_betas_zero_snr": process.zero_terminal_snr,
        "trained_betas": None,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
