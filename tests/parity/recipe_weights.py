"""The deterministic weights under which the original implementation's outputs were recorded (see compvis/README.md)."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

RECORDED = Path(__file__).parent / "compvis"


def index() -> dict:
    """Per recorded file: constructor arguments in the original's names, weight seed, keys and shapes, notes."""
    return json.loads((RECORDED / "index.json").read_text())


def arrays(name: str) -> dict[str, torch.Tensor]:
    """The arrays of one recorded file, as tensors."""
    with np.load(RECORDED / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def recipe_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, torch.Tensor]:
    """Standard normals keyed by CRC32 of the name, scaled by fan-in; biases small, norms about one."""
    return {key: torch.from_numpy(np.asarray(_draw(key, tuple(shape), seed))) for key, shape in shapes.items()}


def _draw(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + seed))
    a = np.asarray(generator.standard_normal(shape)).astype(np.float32)
    if len(shape) >= 2:
        return a / np.float32(np.sqrt(np.prod(shape[1:])))
    if key.endswith("bias"):
        return np.float32(0.1) * a
    return np.float32(1) + np.float32(0.1) * a if shape else a


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|, the measure of every parity test."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
