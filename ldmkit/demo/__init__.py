"""The bundled model: handwritten digits, trained by :mod:`ldmkit.demo.train` on the images scikit-learn ships.

``digits.safetensors`` holds the model with its recipe; ``digits.json`` beside it says how it was trained and what
:mod:`ldmkit.demo.evaluate` measured.
"""

from pathlib import Path

DIGITS = Path(__file__).with_name("digits.safetensors")
RECORD = Path(__file__).with_name("digits.json")
SIZE = 32
CLASSES = 10
