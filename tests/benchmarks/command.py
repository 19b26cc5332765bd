"""The command line of the benchmarks: options, the header with the machine, the process for global switches."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

from .measure import Setting, Table, installed

ROOT = Path(__file__).parents[2]
NAMES = ("imports", "unet_step", "guided_sample", "decode", "sampler_overhead", "memory", "listing", "tiling")
HEAVY = ("hostile_files", "loading", "every_model")
"""Of no peer, or of minutes and gigabytes: run where they are named."""

SWITCHED = ("unet_step", "decode")
"""Measured once more, in a process of their own, with switches that a whole process shares."""

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc then keeps freed memory, so that large temporaries do not fault their pages in again at every step."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that are named, or all; 0 when done."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in (*NAMES, *HEAVY)]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; the names are {', '.join((*NAMES, *HEAVY))}")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.switches:
        set_switches()
    else:
        print(header(), flush=True)
    for setting in settings(options):
        for name in options.names or NAMES:
            for table in tables(name, setting):
                print(f"\n{table}", flush=True)
            if name in SWITCHED and setting.size != "small" and not setting.switches:
                print(f"\n{switch_title()}{switched(name, setting)}", end="", flush=True)
    return 0


def tables(name: str, setting: Setting) -> Iterable[Table]:
    """The tables of one benchmark."""
    found: Iterable[Table] = import_module(f".{name}", __package__).run(setting)
    return found


def settings(options: argparse.Namespace) -> list[Setting]:
    """One setting per device and precision; without ``--device`` the CPU, and the accelerator where there is one."""
    return [
        Setting(
            device=device,
            dtype=getattr(torch, dtype),
            size=options.size or ("normal" if device.type == "cpu" else "large"),
            rounds=options.rounds or (1 if options.size == "small" else 3 if device.type == "cpu" else 25),
            opponent=not options.alone and installed("diffusers") is not None,
            compiles=options.compile or (device.type != "cpu" and options.size != "small"),
            switches=options.switches,
        )
        for device in map(torch.device, options.device or devices())
        for dtype in options.dtype or (["float32"] if device.type == "cpu" else ["bfloat16", "float32"])
    ]


def devices() -> list[str]:
    """The CPU, and the accelerator that torch finds."""
    return ["cpu", str(torch.accelerator.current_accelerator())] if torch.accelerator.is_available() else ["cpu"]


def set_switches() -> None:
    """The documented switches that act on a whole process; the allocator's are set in its environment."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    if torch.accelerator.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def switch_title() -> str:
    """The switches, as they are set."""
    names = [*(f"{name}={value}" for name, value in ALLOCATOR.items()), "mkldnn.matmul.fp32_precision=bf16"]
    if torch.accelerator.is_available():
        names += ["float32_matmul_precision=high", "cudnn.benchmark"]
    return f"a process of its own, with switches that act on all of it: {', '.join(names)}"


def switched(name: str, setting: Setting) -> str:
    """What the benchmark prints in a process of its own that starts with the switches set."""
    given = ["--device", str(setting.device), "--dtype", setting.precision, "--rounds", str(setting.rounds)]
    given += ["--threads", str(torch.get_num_threads()), "--switches"]
    given += [f"--{setting.size}"] * (setting.size != "normal")
    given += ["--compile"] * setting.compiles + ["--alone"] * (not setting.opponent)
    return child(["-m", "tests.benchmarks", name, *given], ALLOCATOR)


def child(arguments: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """The output of a fresh interpreter at the root of the repository, which may cache byte code as an installation.

    Raises:
        RuntimeError: it failed; the message holds what it said.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=inherited | (environment or {}), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{done.stderr.strip()}")
    return done.stdout


def header() -> str:
    """Date, versions, machine, and how busy it was."""
    threads = torch.get_num_threads()
    versions = ", ".join(f"{name} {installed(name) or '(absent)'}" for name in ("torch", "diffusers", "transformers"))
    clock = "CPU time of the process" if threads == 1 else "wall time"
    return "\n".join(
        [
            f"{date.today()}; Python {platform.python_version()}, {versions}",
            f"{', '.join([processor(), *devices()[1:]])}; {cores()} cores, {threads} of them for every contender; "
            f"load average before the start {os.getloadavg()[0]:.1f}",
            f"clock on the CPU: {clock}; columns 'x name': how many times faster than name",
        ]
    )


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="ldmkit beside diffusers")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; none: all")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="size", action="store_const", const="small", help="seconds: for tests")
    size.add_argument("--large", dest="size", action="store_const", const="large", help="minutes more on a CPU")
    parser.add_argument("--device", action="append", help="may be repeated; default: the CPU and the accelerator")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "float16"], help="may be repeated")
    parser.add_argument("--rounds", type=int, help="timed calls of each contender")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--compile", action="store_true", help="compiled contenders too (always on an accelerator)")
    parser.add_argument("--alone", action="store_true", help="ldmkit only, as if diffusers were not installed")
    parser.add_argument("--switches", action="store_true", help="set the process-global switches in this process")
    return parser
