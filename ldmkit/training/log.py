"""What a run writes down: one JSON object per line, a bar, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldmkit.images import to_pil
from ldmkit.training.parallel import rank
from ldmkit.weights.atomic import write_atomically

Watch = Callable[[Mapping[str, float], int], None]
"""``(numbers, step)``: told by the first process whenever a line is written."""


class Log:
    """The log of a run: ``log.jsonl`` in its folder, the bar and the watchers, in the first process alone.

    Lines of steps after ``step`` are removed: a run that goes on from there writes them again.

    Args:
        out: the run's folder.
        step: steps done.
        steps: of the whole run.
        watch: told every line of numbers.
        progress: show a bar.
    """

    def __init__(self, out: Path, step: int, steps: int, watch: Sequence[Watch], progress: bool) -> None:
        self.path = out / "log.jsonl"
        self.watch = watch if rank() == 0 else ()
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not progress or rank() != 0)
        if rank() == 0:
            kept = "".join(f"{json.dumps(line)}\n" for line in read_log(self.path) if line["step"] <= step)
            write_atomically(self.path, lambda partial: partial.write_text(kept))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.bar.close()

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write a line of numbers."""
        self._line({"step": step, **numbers})
        for watch in self.watch:
            watch(numbers, step)
        shown = {key: f"{value:.4g}" for key, value in numbers.items() if key.endswith(("/loss", "per_second"))}
        if shown:
            self.bar.set_postfix(shown, refresh=False)

    def event(self, step: int, what: str) -> None:
        """Write a line of words, and show it."""
        self._line({"step": step, "event": what})
        if rank() == 0:
            self.bar.write(f"step {step}: {what}")

    def advance(self) -> None:
        """A step is done."""
        self.bar.update()

    def _line(self, line: Mapping[str, Any]) -> None:
        if rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps({key: _plain(value) for key, value in line.items()}) + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a killed process left half written is dropped, none where there is no file."""
    lines = []
    for line in Path(path).read_text().splitlines() if Path(path).exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def seconds(path: str | Path, batch: int) -> int:
    """What the steps of a run took, over all the times it was started.

    Args:
        path: its log.
        batch: samples of a step.
    """
    took, before = 0.0, 0
    for line in read_log(path):
        if "samples_per_second" in line:
            took += (line["step"] - before) * batch / line["samples_per_second"]
            before = line["step"]
    return round(took)


def _plain(value: object) -> object:
    """JSON has no numbers that are not finite; words stand for them."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class TensorBoard:
    """A watcher that writes for TensorBoard; needs the extra ``tensorboard``.

    Args:
        folder: where its files go.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def __call__(self, numbers: Mapping[str, float], step: int) -> None:
        """Write the numbers of a step.

        Raises:
            ImportError: tensorboard is not installed.
        """
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("TensorBoard is not installed: pip install 'ldmkit[tensorboard]'") from error
            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def write_sheet(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write images side by side as one PNG.

    Args:
        images: (B, C, H, W) in [0, 1].
        path: the file; its folder is made.
        columns: most in a row.
    """
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    sheet = torch.ones(rows * columns, channels, height, width)
    sheet[:count] = images.detach().float().cpu().clamp(0, 1)
    sheet = sheet.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    picture: Image.Image = to_pil(sheet.reshape(1, channels, rows * height, columns * width))[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"))
