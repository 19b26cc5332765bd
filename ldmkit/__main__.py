"""``python -m ldmkit``: ask the registry from a shell.

``components``, ``describe`` and ``plugins`` print what the functions of :mod:`ldmkit.registry` return, and work when
every plug-in is broken; ``check`` puts a component through the conformance suite; ``new-plugin`` writes a distribution
to start from; ``inspect``, ``convert`` and ``verify`` are for files of weights. Exit status 0: done; 1: an error of
ldmkit, in one line on stderr, or a check that fails; 2: the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

from ldmkit import registry
from ldmkit._version import __version__
from ldmkit.component import owned_by
from ldmkit.errors import LdmkitError, LdmkitPluginWarning
from ldmkit.weights import commands as weights_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "demo":
            return int(import_module("ldmkit.demo.sheet").main(["--out", options.out] if options.out else []) or 0)
        if options.command == "check":
            return _check(options)
        if options.command in weights_commands.NAMES:
            print(weights_commands.run(options))
            return 0
        if options.command == "new-plugin":
            print(import_module("ldmkit.new_plugin").write(options.name, options.kind, options.out))
            return 0
        print(_answer(options))
    except (LdmkitError, FileNotFoundError) as error:
        print(f"ldmkit: error: {error}", file=sys.stderr)
        return 1
    return 0


def _answer(options: argparse.Namespace) -> str:
    # What a plug-in prints while it loads must not mix with a listing that a program may read.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmkitPluginWarning)
        match options.command:
            case "components":
                return _components([options.kind] if options.kind else registry.KINDS, options.json)
            case "describe":
                return str(registry.describe(options.kind, options.name))
            case _:
                return _plugins(options.json)


def _check(options: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):
        report = import_module("ldmkit.testing.report").report(
            options.kind, options.name, options.options, options.example
        )
    print(report)
    return int(report.failed > 0)


def _components(kinds: Sequence[str], as_json: bool) -> str:
    rows = [_row(name, entry) for kind in kinds for name, entry in registry.components(kind).items()]
    for info in registry.plugins():
        if info.status == "failed":
            print(f"ldmkit: skipped plug-in {info}: {info.error}", file=sys.stderr)
    if as_json:
        return json.dumps(rows, indent=2)
    lines = []
    for kind in kinds:
        table = [
            (row["name"], owned_by(row["distribution"], row["version"]), row["factory"])
            for row in rows
            if row["kind"] == kind
        ]
        lines += [kind, *(f"  {line}" for line in _aligned(table) or ["(none)"])]
    return "\n".join(lines)


def _row(name: str, entry: registry.Component) -> dict[str, str]:
    owner = {"distribution": entry.distribution, "version": entry.version}
    return {"kind": entry.kind, "name": name, **owner, "factory": entry.path}


def _plugins(as_json: bool) -> str:
    found = registry.plugins()
    if as_json:
        return json.dumps([asdict(info) for info in found], indent=2)
    return "\n".join(_aligned([(info.status, str(info), info.error or _count(info)) for info in found]))


def _count(info: registry.PluginInfo) -> str:
    count = len(info.components)
    return "1 component" if count == 1 else f"{count} components"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ldmkit", description="Components for latent diffusion models.")
    parser.add_argument("--version", action="version", version=f"ldmkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    components = commands.add_parser("components", help="list every component by kind, with its owner")
    components.add_argument("--kind", choices=registry.KINDS)
    components.add_argument("--json", action="store_true")
    describe = commands.add_parser("describe", help="show the options, purpose, source and owner of one component")
    describe.add_argument("kind", choices=registry.KINDS, metavar="KIND", help=", ".join(registry.KINDS))
    describe.add_argument("name", metavar="NAME", help="a name, or name@distribution")
    check = commands.add_parser("check", help="put one component through the conformance suite")
    check.add_argument("kind", choices=registry.KINDS, metavar="KIND", help=", ".join(registry.KINDS))
    check.add_argument("name", metavar="NAME", help="a name, or name@distribution")
    check.add_argument("--options", type=_options, metavar="JSON", help="its keywords, as a JSON object")
    check.add_argument("--example", metavar="MODULE:NAME", help="an ldmkit.testing.Example to use")
    plugins = commands.add_parser("plugins", help="list every plug-in, and why one is not loaded")
    plugins.add_argument("--json", action="store_true")
    new = commands.add_parser("new-plugin", help="write a distribution to start a plug-in from")
    new.add_argument("name", metavar="NAME", help="what the component will be called; the folder is ldmkit-NAME")
    new.add_argument("--kind", choices=registry.KINDS, default="conditioner")
    new.add_argument("--out", metavar="DIR", default=".", help="the folder to write into (default: this one)")
    demo = commands.add_parser("demo", help="sample the bundled model and write a contact sheet")
    demo.add_argument("--out", metavar="DIR", help="the folder to write to")
    weights_commands.add(commands)
    return parser


def _options(text: str) -> dict[str, object]:
    """The keywords in a JSON object; argparse makes its usage message of the error."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f'a JSON object is wanted, as in {{"factor": 4}}; got {text}')
    return options


if __name__ == "__main__":
    sys.exit(main())
