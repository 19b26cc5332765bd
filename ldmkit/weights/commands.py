"""``python -m ldmkit inspect``, ``convert`` and ``verify``: files of weights from a shell."""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from typing import Any

NAMES = ("inspect", "convert", "verify")


def add(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the class of its subparsers to itself
    """Add the three commands to a parser's subcommands; loads no torch."""
    inspect = commands.add_parser("inspect", help="say what a file of weights is and holds, without reading a weight")
    inspect.add_argument("file", metavar="FILE")
    convert = commands.add_parser("convert", help="import a checkpoint of the original and save it as a file of ldmkit")
    convert.add_argument("file", metavar="FILE", help="a .ckpt, .pt or .safetensors file")
    convert.add_argument("out", metavar="OUT", help="the safetensors file to write")
    composed = convert.add_mutually_exclusive_group()
    composed.add_argument("--recipe", metavar="NAME", help="the published model; default: recognised by its tensors")
    composed.add_argument("--config", metavar="YAML", help="the original's configuration file")
    convert.add_argument("--ema", choices=("auto", "averaged", "raw"), default="auto", help="which weights to take")
    convert.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of all but the first stage")
    verify = commands.add_parser("verify", help="compare a file of ldmkit with the hash of its contents")
    verify.add_argument("file", metavar="FILE")


def run(options: argparse.Namespace) -> str:
    """Run one of the commands; what it prints.

    Raises:
        LdmkitError: it failed; one line.
        FileNotFoundError: there is no such file.
    """
    match options.command:
        case "inspect":
            return str(import_module("ldmkit.weights.inspecting").inspect(options.file))
        case "convert":
            return _convert(options)
        case _:
            found = import_module("ldmkit.weights.native").verify(options.file)
            return f"{options.file}: the contents are those that were written, {found}"


def _convert(options: argparse.Namespace) -> str:
    importing, torch = import_module("ldmkit.weights.importing"), import_module("torch")
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    done = importing.imported(options.file, recipe=options.recipe, config=options.config, ema=options.ema, dtype=dtype)
    notes = {**done.recipe.notes, "imported_from": os.path.basename(options.file), "weights": done.report.weights}
    written = import_module("ldmkit.weights.native").save(done.model, options.out, notes)
    return f"{done.report}\nwritten         {written}"
