"""`python -m training.cards NAME --folder DIR --scores FILE`: the model card of a checkpoint that ships.

What can be measured is told by its scores; the rest is said here, once, for each of the three.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ourvidz.pipelines.checksums import verify
from training.export import size_mib, write_checksums

CARD = "README.md"
UNITS = (("seconds", 2, " s"), ("dB", 1, " dB"), ("MiB", 1, " MiB"), ("perplexity", 2, ""))
"""What the name of a measure has in it, how many decimals it gets, and its unit."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be said of one checkpoint, beside its scores."""

    library: str
    does: str
    """What the hub calls its task: https://huggingface.co/tasks"""
    summary: str
    data: str
    recipe: str
    measured: str
    limits: tuple[str, ...]


WORLD = (
    "a drawn world of ten colours, seven shapes, five positions and two sizes, with captions in several "
    "wordings. One in ten combinations of shape, colour, background and {fourth} is held out: no training "
    "{example} has it, and the scores below are of those alone"
)
BY_ARITHMETIC = (
    "the evaluator looks at pixels: the nearest colour at the border and inside, the template that overlaps "
    "best, {more}. A wrong {example} counts as a wrong answer, never as a missing one"
)
LICENCE = (
    "That of OurVidz Worker, which it is part of; none has been chosen yet. No other model, picture or text "
    "went into it."
)
NOT_FOR_PICTURES = (
    "It is a stand-in for tests, demonstrations and machines without a GPU, not a picture model."
)

SUBJECTS = {
    "tiny-sdxl": Subject(
        library="diffusers",
        does="text-to-image",
        summary="Every class of Stable Diffusion XL, small: it paints one plain shape on a plain background "
        "at 128x128 px, from captions like “a big red circle on a blue background, on the left”.",
        data=f"Drawn by rules: {WORLD.format(example='picture', fourth='position')}.",
        recipe="The VAE first; then the UNet with both text encoders from random weights, velocity "
        "prediction, one prompt in nine dropped for guidance, a moving average of the weights; half "
        "precision.",
        measured=f"Through the pipeline that serves it, 15 steps, guidance 6; "
        f"{BY_ARITHMETIC.format(more='the nearest named position', example='picture')}.",
        limits=(
            "It knows no word beside those of its world, and paints some shape whatever it is asked.",
            "It was trained at 128 px, with a few pictures of 96 and 64 px; any other size is a guess.",
            NOT_FOR_PICTURES,
        ),
    ),
    "tiny-wan": Subject(
        library="diffusers",
        does="text-to-video",
        summary="Every class of Wan 2.1 text-to-video, small: one plain shape that moves, grows or shrinks "
        "on a plain background.",
        data=f"Drawn by rules: {WORLD.format(example='clip', fourth='motion')}. There are six motions.",
        recipe="The causal VAE first; then the transformer with its text encoder from random weights, flow "
        "matching, prompts dropped for guidance, a moving average of the weights; half precision.",
        measured=f"Through the pipeline that serves it, 25 steps, guidance 6.5; "
        f"{BY_ARITHMETIC.format(more='the line that the middle of the shape follows', example='clip')}.",
        limits=(
            "It knows no word beside those of its world, and shows some shape whatever it is asked.",
            "Colours and motions are right, shapes are blobs: the form is seldom the one that was asked for.",
            "It learned clips of 9 to 33 frames; in longer ones the motion is lost.",
            NOT_FOR_PICTURES.replace("picture", "video"),
        ),
    ),
    "tiny-qwen": Subject(
        library="transformers",
        does="text-generation",
        summary="Two small models of the Qwen2 class: `instruct` enriches prompts for pictures and talks "
        "about the little it knows, `base` continues a text.",
        data="Texts and conversations put together by rules from this project's own words; nothing was "
        "collected.",
        recipe="The base model from random weights; the instruct model goes on from it on conversations; "
        "half precision.",
        measured="By rules, on prompts that were held out: what an answer must have in it, what it must not.",
        limits=(
            "It knows its few subjects and no facts, and answers with them whatever it is asked.",
            "It is a stand-in for tests, demonstrations and machines without a GPU, not an assistant.",
        ),
    ),
}


def card(name: str, scores: Mapping[str, Any], *, trained: str, mib: float) -> str:
    """The card of `name` in Markdown. `trained` says how long and on what, `mib` is the folder's size."""
    subject = SUBJECTS[name]
    limits = "\n".join(f"- {limit}" for limit in subject.limits)
    tabled = "\n".join(tables(scores)).strip()
    return f"""---
license: other
license_name: none chosen yet
library_name: {subject.library}
pipeline_tag: {subject.does}
---
# {name}

{subject.summary}

| | |
|---|---|
| size | {mib:.1f} MiB |
| data | {subject.data} |
| recipe | {subject.recipe} `training/` makes it again. |
| trained | {trained} |
| licence | {LICENCE} |

## Measured

{subject.measured}

{tabled}

## Limits

{limits}

`sha256sum -c SHA256SUMS` checks the files; so does every worker that loads them.
"""


def tables(scores: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table for every group of scores with the same measures, then one for the single ones.
    Lists, which are examples, are left out."""
    groups: dict[tuple[str, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, found in scores.items():
        if isinstance(found, Mapping):
            groups.setdefault(tuple(found), []).append((name, found))
    for measures, rows in groups.items():
        cells = [(name, *(shown(measure, found[measure]) for measure in measures)) for name, found in rows]
        yield from _table(("", *measures), cells)
    single = [
        (name, shown(name, found)) for name, found in scores.items() if isinstance(found, (str, int, float))
    ]
    if single:
        yield from _table(("", "measured"), single)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
    yield ""


def shown(measure: str, value: Any) -> str:
    """A score with its unit, which its name tells; what has none is a share."""
    if isinstance(value, (str, int)):
        return str(value)
    for word, digits, unit in UNITS:
        if word in measure:
            return f"{value:.{digits}f}{unit}"
    return f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}"


def write(name: str, folder: Path, scores: Mapping[str, Any], *, trained: str) -> Path:
    """Put the card into the folder of a checkpoint and list it among the checksums.

    `ModelLoadError` if the folder is not what its checksums say: new ones would hide that.
    """
    verify(folder)
    path = folder / CARD
    path.unlink(missing_ok=True)
    path.write_text(card(name, scores, trained=trained, mib=size_mib(folder)))
    write_checksums(folder)
    return path


@click.command()
@click.argument("name", type=click.Choice(sorted(SUBJECTS)))
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), required=True)
@click.option("--scores", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True)
@click.option("--trained", required=True, help="How long and on what, for the card: one sentence.")
def main(name: str, folder: Path, scores: Path, trained: str) -> None:
    """Write the model card of the exported checkpoint NAME from its scores."""
    click.echo(write(name, folder, json.loads(scores.read_text()), trained=trained))


if __name__ == "__main__":
    main()
