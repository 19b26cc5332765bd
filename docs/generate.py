"""Write one page per kind of component, from the registry and the docstrings of the built-ins.

    python docs/generate.py [FOLDER]

The folder is ``docs/components`` where none is given. The text depends on the source alone: neither installed plug-ins
nor line numbers nor versions appear in it, so a page changes when a component does.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ldmkit.registry import KINDS, Component, components

ROOT = Path(__file__).resolve().parents[1]
BUILTIN = "ldmkit"
WIDTH = 100

INTRODUCTIONS = {
    "first-stage": (
        "First stages",
        "Between images in [-1, 1] and the latents that are diffused: `encode(image, noise=None)` gives latents that "
        "are already scaled, `decode(z)` is its inverse.",
    ),
    "backbone": (
        "Backbones",
        "The raw network, `(x, t, context, context_mask, vector, label) -> prediction`. `x` carries the channels of "
        "`concat` after those of the state.",
    ),
    "conditioner": (
        "Conditioners",
        "From a batch to a `Conditioning`: `conditioner(batch)`, and `conditioner.null(batch)` with the same slots and "
        "no information. Each lists the batch keys it reads. [A custom one](../conditioner.md) takes ten lines.",
    ),
    "process": (
        "Processes",
        "The forward process a network was trained on: `level(t)` gives `(t, alpha, sigma)` of "
        "`x = alpha * x0 + sigma * eps`, `time(log_snr)` goes back, `levels(n)` is the customary list of n steps.",
    ),
    "sampler": (
        "Samplers",
        "From noise to a latent: `sampler(denoise, x, levels, noise, at_stop=None)`. A sampler holds no state and may "
        "be shared between threads. [Swapping one](../compose.md#samplers-and-levels).",
    ),
    "guidance": (
        "Guidance",
        "How the conditional and the unconditional model become the one that is sampled: "
        "`guidance(bind, cond, uncond, levels) -> denoise`.",
    ),
    "task": (
        "Tasks",
        "From what a user has to the batch that a model's conditioners read: `task.prepare(inputs)`, the same for "
        "sampling and for training.",
    ),
    "recipe": (
        "Recipes",
        "A whole composition as plain data; `ldmkit.compose(recipe)` builds it. [Writing one](../compose.md#recipes).",
    ),
}


def main() -> None:
    """Write the pages."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "components"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name -> text, one page for each kind."""
    return {f"{kind}.md": page(kind) for kind in KINDS}


def page(kind: str) -> str:
    """The page of one kind."""
    title, introduction = INTRODUCTIONS[kind]
    builtin = [entry for entry in components(kind).values() if entry.distribution == BUILTIN]
    parts = [
        "<!-- Written by docs/generate.py from the docstrings: run `make docs`, do not edit. -->",
        f"# {title}",
        introduction,
        f'`ldmkit.names("{kind}")` lists what is installed, plug-ins included; '
        f'`ldmkit.build("{kind}", name, **options)` makes one.',
        " · ".join(f"[{entry.name}](#{entry.name})" for entry in builtin) or "There are no built-in ones yet.",
    ]
    for entry in builtin:
        parts += section(entry)
    return "\n\n".join(parts) + "\n"


def section(entry: Component) -> Iterator[str]:
    """One component: what it is, what it takes, where it is."""
    description = entry.describe()
    docstring = parse(inspect.cleandoc(entry.load().__doc__ or ""))
    yield f"## {entry.name}"
    first, *others = docstring.prose
    yield first
    yield f"```text\n{laid_out(entry.name, description.signature)}\n```"
    yield from others
    for heading, title in (("Args", "Options"), ("Attributes", "Attributes"), ("Raises", "Raises")):
        if items := docstring.fields.get(heading):
            yield f"**{title}**"
            yield "\n".join(f"- `{name}`: {text}" if text else f"- {name}" for name, text in items)
    if docstring.source:
        yield f"**Source** {docstring.source}"
    path = Path(description.file or "").resolve().relative_to(ROOT).as_posix()
    yield f"`{description.factory}` in [{path}](../../{path})"


@dataclass
class Docstring:
    """A docstring taken apart; all texts are Markdown.

    Args:
        prose: paragraphs, the summary first, and tables.
        fields: heading, such as ``Args``, -> (name, text) of every entry.
        source: where the method comes from.
    """

    prose: list[str] = field(default_factory=list)
    fields: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    source: str = ""


def parse(text: str) -> Docstring:
    """Take a docstring apart at its blank lines."""
    docstring = Docstring()
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if heading := re.fullmatch(r"(\w+):", lines[0]):
            docstring.fields[heading[1]] = list(entries(lines[1:]))
        elif lines[0].startswith("Source: "):
            docstring.source = joined(lines).removeprefix("Source: ")
        else:
            docstring.prose.append(table(lines) if is_rule(lines[0].strip()) else joined(lines))
    return docstring


def entries(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of ``name: text`` with its continuation lines, which are indented further."""
    collected: list[list[str]] = []
    for line in lines:
        if line.startswith("     "):
            collected[-1].append(line)
        else:
            collected.append([line])
    for entry in collected:
        name, _, text = joined(entry).partition(": ")
        yield name, text


def joined(lines: Iterable[str]) -> str:
    """Lines as one line of Markdown."""
    return markdown(" ".join(line.strip() for line in lines))


def markdown(text: str) -> str:
    """Roles and literals of reStructuredText as code."""
    text = re.sub(r":\w+:`~[\w.]*?(\w+)`", r"`\1`", text)
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")


def is_rule(line: str) -> bool:
    """Whether a line is the border of a table."""
    return bool(re.fullmatch(r"=+( +=+)+", line))


def table(lines: list[str]) -> str:
    """A simple table of reStructuredText as one of Markdown; a row without a first cell continues the last one."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    lines = [line[indent:] for line in lines]
    starts = [match.start() for match in re.finditer(r"=+", lines[0])]
    rows: list[list[str]] = []
    for line in (line for line in lines if not is_rule(line)):
        cells = [markdown(line[start:end].strip()) for start, end in pairwise([*starts, None])]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def laid_out(name: str, signature: str) -> str:
    """A signature on one line, or on one line per option where it is long."""
    whole = name + signature
    if len(whole) <= WIDTH:
        return whole
    return f"{name}(\n" + "".join(f"    {option},\n" for option in options(signature[1:-1])) + ")"


def options(text: str) -> Iterator[str]:
    """The parts of a signature between commas that no bracket encloses."""
    depth = begin = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            yield text[begin:place].strip()
            begin = place + 1
    yield text[begin:].strip()


if __name__ == "__main__":
    main()
