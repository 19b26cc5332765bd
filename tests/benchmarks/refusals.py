"""Refuse every hostile file in this process, which was started for it: prints (seconds, bytes) by name, as JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ldmkit.errors import CheckpointError
from ldmkit.weights.reading import opened
from tests.hostile import write

from .peak import resident

CLEAR = Path("/proc/self/clear_refs")


def refused(path: Path) -> tuple[float, int]:
    """CPU seconds, and bytes above those held before, until the file is refused.

    Raises:
        RuntimeError: it was not.
    """
    if CLEAR.exists():
        CLEAR.write_text("5")  # Linux then counts the peak anew
    held, start = resident("VmRSS"), time.process_time()
    try:
        with opened(path) as contents:
            for name in contents.tensors:
                contents.read(name)
    except CheckpointError:
        return time.process_time() - start, max(0, resident("VmHWM") - held)
    raise RuntimeError(f"{path} was read")


def main() -> None:
    """Measure all of them, after one file of each kind, for what Python loads once."""
    with TemporaryDirectory() as folder:
        paths = write(Path(folder))
        for name in ("calls os.system", "old format calls os.system", "header with a hole"):
            refused(paths[name])
        print(json.dumps({name: refused(path) for name, path in paths.items()}))


if __name__ == "__main__":
    main()
