"""Write the page of published models from their recipes.

    python docs/models.py [FILE]

The file is ``docs/checkpoints/models.md`` where none is given. The text depends on the recipes alone.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import ldmkit
from ldmkit.builtin import TABLE
from ldmkit.recipes import FIRST_STAGES, PUBLISHED
from ldmkit.recipes.first_stages import NOTES
from ldmkit.recipes.notes import KEYS

PAGE = Path(__file__).resolve().parent / "checkpoints" / "models.md"
PLUG_INS = {
    "bert-text": "ldmkit-transformers",
    "clip-text": "ldmkit-transformers",
    "openclip-text": "ldmkit-openclip",
}
SIZED = (
    "unconditional",
    "class-conditional",
    "text-to-image",
    "layout-to-image",
    "embedding-to-image",
    "image-variation",
)
"""Tasks whose inputs do not say how large the image is."""

HEAD = """<!-- Written by docs/models.py from the recipes: run `make docs`, do not edit. -->

# Published models

Each is a recipe, plain data: `ldmkit.recipe(name)`, and `ldmkit.recipe(name).build()` composes it, with fresh weights.
`ldmkit.import_checkpoint(file, recipe=name)` fills it from the file that its publisher offers. A test holds the recipes
to every key and shape of 29 models as the original's classes make them: all below but `sd-1-inpainting` and the two
`sd-2-unclip`. Files are offered at addresses that their publishers named; ldmkit does not download them. Where no
licence is stated for the weights, that of the repository is given.

"""


def main() -> None:
    """Bring the page up to date."""
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    sections = [section(name) for name in PUBLISHED]
    return "\n".join([HEAD.rstrip("\n"), "", *overview(), "", *sections, *stages(), "", *keys(), ""])


def overview() -> Iterator[str]:
    """One row per model."""
    yield "| recipe | task | size | published result | licence |"
    yield "| --- | --- | --- | --- | --- |"
    for name in PUBLISHED:
        notes: Mapping[str, Any] = ldmkit.recipe(name).notes
        sampling, results = notes["sampling"], notes["numbers"]
        size = f"{sampling['height']} x {sampling['width']}"
        result = scores(results[0]) if results else "none"
        yield f"| [{name}](#{name}) | {notes['task']} | {size} | {result} | {notes['licence']} |"


def section(name: str) -> str:
    """Everything about one model: what it is, where it is, how it is called, what was measured."""
    recipe = ldmkit.recipe(name)
    notes: Mapping[str, Any] = recipe.notes
    facts = [
        f"Published as `{notes['published_as']}` ([arXiv {notes['paper']}](https://arxiv.org/abs/{notes['paper']})), "
        f"weights: {notes['licence']}.",
        f"File: <{notes['source']}>; it holds {holds(notes['ema'])}.",
        f"Guidance compares with {notes['null']}." if notes["null"] else "It is not guided.",
        *(f"Result: {scores(result)} ({result['setting']})." for result in notes["numbers"]),
        *notes["remarks"],
        *(f"In the file and not used: `{prefix}*`, {why}." for prefix, why in notes["unused"].items()),
    ]
    needed = sorted({PLUG_INS[part.name] for _, part in recipe.parts() if part.name in PLUG_INS})
    facts += [f"It needs the plug-in {package}." for package in needed]
    lines = [f"## {name}", "", f"{summary(name)}", "", "```python no-run", *call(name, notes), "```", ""]
    return "\n".join([*lines, *(f"- {fact}" for fact in facts), ""])


def call(name: str, notes: Mapping[str, Any]) -> list[str]:
    """How the model is used, with its own sampling defaults."""
    said = notes["sampling"]
    filled = f'model = ldmkit.import_checkpoint("model.ckpt", recipe="{name}")'
    size = [f"height={said['height']}", f"width={said['width']}"] if notes["task"] in SIZED else []
    sampler = [f'sampler="{said["sampler"]}"', f"num_inference_steps={said['steps']}", f"eta={said['eta']}"]
    scale = [f"guidance_scale={said['guidance_scale']}"] if said["guidance_scale"] != 1 else []
    arguments = [*keywords(notes["inputs"]), *size, *sampler, *scale, "seed=0"]
    pipeline = f'pipe = ldmkit.pipeline("{notes["task"]}", model)'
    return [filled, pipeline, "image = pipe(", *(f"    {given}," for given in arguments if given), ").images[0]"]


def keywords(inputs: str) -> list[str]:
    """The inputs of a task, one argument each, as they are written."""
    source = f"f({inputs})"
    (call,) = ast.parse(source).body
    return [
        f"{keyword.arg}={ast.get_source_segment(source, keyword.value)}"
        for keyword in cast(ast.Call, cast(ast.Expr, call).value).keywords
    ]


def scores(result: Mapping[str, Any]) -> str:
    """The numbers of one result."""
    return ", ".join(f"{name} {value}" for name, value in result.items() if name != "setting")


def holds(ema: str) -> str:
    """The note ``ema`` in words."""
    return {"beside": "raw and averaged weights", "only": "averaged weights alone"}[ema]


def summary(name: str) -> str:
    """The first line of what the recipe says of itself."""
    module, _, function = TABLE["recipe"][name].partition(":")
    documented = inspect.getdoc(getattr(import_module(module), function))
    return (documented or "").partition("\n")[0]


def stages() -> Iterator[str]:
    """First stages alone."""
    yield "## First stages alone"
    yield ""
    yield "`ldmkit.recipes.first_stage(name, scale=1.0)` gives one as a part. The results are on the validation set of"
    yield "ImageNet at 256 x 256."
    yield ""
    yield "| name | part | file | rFID | IS | PSNR | PSIM | SSIM |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, part in FIRST_STAGES.items():
        notes: Mapping[str, Any] = NOTES[name]
        numbers = " | ".join(str(value) for value in notes["numbers"].values())
        yield f"| {name} | `{part.name}` | <{notes['source']}> | {numbers} |"


def keys() -> Iterator[str]:
    """What the notes of a recipe mean."""
    yield "## Notes"
    yield ""
    yield "`ldmkit.recipe(name).notes` of a published model has these keys:"
    yield ""
    yield "| key | value |"
    yield "| --- | --- |"
    yield from (f"| `{key}` | {meaning} |" for key, meaning in KEYS.items())


if __name__ == "__main__":
    main()
