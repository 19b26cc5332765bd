"""CPU seconds of importing, each in fresh interpreters."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .command import child
from .measure import Setting, Table, absent, installed

BUDGET = 0.2
"""CPU seconds that ``import ldmkit`` with its model may cost beside ``import torch``."""

TORCH = "import torch"
MODEL = "import ldmkit; ldmkit.LatentDiffusion"
AFTER_TORCH = "the same, after import torch"
LISTING = "ldmkit: list all components"
PIPELINE = "diffusers: StableDiffusionPipeline"
OURS = {
    "python alone": "pass",
    TORCH: TORCH,
    "import ldmkit": "import ldmkit",
    MODEL: MODEL,
    AFTER_TORCH: f"import torch; start = time.process_time(); {MODEL}",
    LISTING: "import ldmkit; from ldmkit.registry import KINDS; [ldmkit.names(kind) for kind in KINDS]",
}
THEIRS = {
    "diffusers: UNet, autoencoder, DDIM": "from diffusers import UNet2DConditionModel, AutoencoderKL, DDIMScheduler",
    PIPELINE: "from diffusers import StableDiffusionPipeline",
}


def run(setting: Setting) -> Iterator[Table]:
    """One table; device and precision play no part."""
    statements = OURS | (THEIRS if setting.opponent else {})
    notes = absent(setting)
    if setting.opponent and installed("transformers") is None:
        del statements[PIPELINE]
        notes = (f"{PIPELINE} was not measured: it needs transformers, which is not installed",)
    warm_up, rounds = (0, 1) if setting.size == "small" else (1, max(5, setting.rounds))
    # The first round writes the byte code that the others read, as an installation has it.
    turns = [{name: fresh(code) for name, code in statements.items()} for _ in range(warm_up + rounds)]
    times = {name: [turn[name][0] for turn in turns[warm_up:]] for name in statements}
    rows = {name: (median(own), min(own)) for name, own in times.items()}
    verdict = verdicts(rows[AFTER_TORCH][0], listing_loads_torch=turns[0][LISTING][1])
    yield Table(f"imports, CPU seconds, {rounds} rounds", ("median", "fastest"), rows, (*verdict, *notes))


def fresh(code: str) -> tuple[float, bool]:
    """CPU seconds of a fresh interpreter to the end of the code, and whether torch is loaded then.

    They count from the interpreter's start, or from where the code sets ``start``.
    """
    report = f"import sys, time; start = 0\n{code}\nprint(time.process_time() - start, 'torch' in sys.modules)"
    seconds, torch_too = child(["-c", report]).split()
    return float(seconds), torch_too == "True"


def verdicts(extra: float, listing_loads_torch: bool) -> tuple[str, str]:
    """What the numbers say about the budget, and whether listing loads torch."""
    return (
        f"ldmkit with its model costs {extra:.3f} s beside torch: {'within' if extra <= BUDGET else 'OVER'} {BUDGET} s",
        f"listing all components loads {'torch, WHICH IT MUST NOT' if listing_loads_torch else 'no torch'}",
    )


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["imports", *sys.argv[1:]]))
