"""Files that are damaged, made up or hostile: name -> what writes one. None may be read, or do harm."""

from collections.abc import Callable, Mapping
from pathlib import Path

from .archives import ARCHIVES
from .headers import HEADERS
from .others import OTHERS
from .programs import LEGACY, PROGRAMS

CORPUS: Mapping[str, Callable[[Path], None]] = {**PROGRAMS, **ARCHIVES, **LEGACY, **HEADERS, **OTHERS}
"""Name -> function of the path to write."""


def write(folder: Path) -> dict[str, Path]:
    """Every file of the corpus, in a folder that may hold other files: name -> path."""
    paths = {name: folder / f"{name.replace(' ', '-')}.ckpt" for name in CORPUS}
    for name, path in paths.items():
        CORPUS[name](path)
    return paths
