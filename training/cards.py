"""`python -m training.cards NAME --folder DIR --scores FILE`: write the model card of a packaged checkpoint.

The tables come from the scores of its evaluation, the other texts from `TEXTS`.
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
"""A part of a measure's name, the number of decimals and the unit of such measures."""


@dataclass(frozen=True, slots=True)
class CardTexts:
    """The texts of a model card. `task` is a task of the hub: https://huggingface.co/tasks"""

    library: str
    task: str
    summary: str
    data: str
    recipe: str
    measured: str
    limits: tuple[str, ...]


DATA = (
    "ten colours, seven shapes, five positions and two sizes, with captions in several wordings. One in ten "
    "combinations of shape, colour, background and {fourth} is held out: no training {example} has it, and "
    "the scores below are measured on those alone"
)
RECOGNITION = (
    "attributes are recognized from pixels: the nearest colour at the border and inside, the template with "
    "the largest overlap, {more}. A wrong {example} counts as a wrong answer, never as a missing one"
)
LICENCE = (
    "That of OurVidz Worker, which it is part of; none has been chosen yet. No other model, image or text "
    "was used."
)
NOT_FOR_IMAGES = "It is meant for tests, demonstrations and machines without a GPU, not for producing images."

TEXTS = {
    "tiny-sdxl": CardTexts(
        library="diffusers",
        task="text-to-image",
        summary="All model classes of Stable Diffusion XL, small: it generates one plain shape on a plain "
        "background at 128x128 px, from captions like “a big red circle on a blue background, on the left”.",
        data=f"Rendered scenes: {DATA.format(example='image', fourth='position')}.",
        recipe="The VAE first; then the UNet with both text encoders from random weights, velocity "
        "prediction, one prompt in nine dropped for guidance, a moving average of the weights; half "
        "precision.",
        measured=f"With the pipeline that serves it, 15 steps, guidance 6; "
        f"{RECOGNITION.format(more='the nearest position', example='image')}.",
        limits=(
            "It knows only the words of its captions, and generates a shape for every prompt.",
            "It was trained at 128 px, with a few images of 96 and 64 px; other sizes are outside its "
            "training.",
            NOT_FOR_IMAGES,
        ),
    ),
    "tiny-wan": CardTexts(
        library="diffusers",
        task="text-to-video",
        summary="All model classes of Wan 2.1 text-to-video, small: one plain shape that moves, grows or "
        "shrinks on a plain background.",
        data=f"Rendered clips: {DATA.format(example='clip', fourth='motion')}. There are six motions.",
        recipe="The causal VAE first; then the transformer with its text encoder from random weights, flow "
        "matching, prompts dropped for guidance, a moving average of the weights; half precision.",
        measured=f"With the pipeline that serves it, 25 steps, guidance 6.5; "
        f"{RECOGNITION.format(more='the line that the centre of the shape follows', example='clip')}.",
        limits=(
            "It knows only the words of its captions, and generates a shape for every prompt.",
            "Colours and motions are correct, shapes are blobs: the shape is seldom the requested one.",
            "It was trained on clips of 9 to 33 frames; longer clips lose the motion.",
            NOT_FOR_IMAGES.replace("images", "videos"),
        ),
    ),
    "tiny-qwen": CardTexts(
        library="transformers",
        task="text-generation",
        summary="Two small models of the Qwen2 class: `instruct` enriches prompts for images and clips and "
        "answers questions about shapes, `base` continues a text.",
        data="Texts and dialogues generated from templates and word lists of this project; no text was "
        "collected.",
        recipe="The base model from random weights; the instruct model goes on from it on conversations; "
        "half precision.",
        measured="By comparing words, on held-out prompts and dialogues. “Kept” means that every noun, "
        "colour, verb and direction of the prompt is in the answer, as often as in the prompt; “enriched” "
        "means that and at least four words more. The everyday prompts were written by hand.",
        limits=(
            "Both models copy words that they were not trained on; about one prompt in fifty loses one.",
            "It knows the topics of its templates alone and answers every question from them.",
            "It is meant for tests, demonstrations and machines without a GPU, not as an assistant.",
        ),
    ),
}


def card(name: str, scores: Mapping[str, Any], *, trained: str, mib: float) -> str:
    """The card of `name` in Markdown. `trained` is a sentence about the duration and the machine of the
    training, `mib` the size of the folder."""
    texts = TEXTS[name]
    limits = "\n".join(f"- {limit}" for limit in texts.limits)
    score_tables = "\n".join(tables(scores)).strip()
    return f"""---
license: other
license_name: none chosen yet
library_name: {texts.library}
pipeline_tag: {texts.task}
---
# {name}

{texts.summary}

| | |
|---|---|
| size | {mib:.1f} MiB |
| data | {texts.data} |
| recipe | {texts.recipe} The code is in `training/`. |
| trained | {trained} |
| licence | {LICENCE} |

## Measured

{texts.measured}

{score_tables}

## Limits

{limits}

`sha256sum -c SHA256SUMS` checks the files; so does every worker that loads them.
"""


def tables(scores: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one table for each group of scores with the same measures, then one for all single scores.
    Lists, which are examples, are left out."""
    groups: dict[tuple[str, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, score in scores.items():
        if isinstance(score, Mapping):
            groups.setdefault(tuple(score), []).append((name, score))
    for measures, rows in groups.items():
        cells = [(name, *(format_score(measure, row[measure]) for measure in measures)) for name, row in rows]
        yield from _table(("", *measures), cells)
    single = [
        (name, format_score(name, score))
        for name, score in scores.items()
        if isinstance(score, (str, int, float))
    ]
    if single:
        yield from _table(("", "measured"), single)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
    yield ""


def format_score(measure: str, value: Any) -> str:
    """A score with the unit that its name implies. Without a unit, 0 to 1 is a percentage."""
    if isinstance(value, (str, int)):
        return str(value)
    for word, digits, unit in UNITS:
        if word in measure:
            return f"{value:.{digits}f}{unit}"
    return f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}"


def write(name: str, folder: Path, scores: Mapping[str, Any], *, trained: str) -> Path:
    """Write the card into the folder of a checkpoint and update its checksums; the path of the card.

    `ModelLoadError` if the folder does not match its checksums, which new ones would hide.
    """
    verify(folder)
    path = folder / CARD
    path.unlink(missing_ok=True)
    path.write_text(card(name, scores, trained=trained, mib=size_mib(folder)))
    write_checksums(folder)
    return path


@click.command()
@click.argument("name", type=click.Choice(sorted(TEXTS)))
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), required=True)
@click.option("--scores", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True)
@click.option(
    "--trained", required=True, help="Duration and machine of the training: one sentence for the card."
)
def main(name: str, folder: Path, scores: Path, trained: str) -> None:
    """Write the model card of the exported checkpoint NAME from its scores."""
    click.echo(write(name, folder, json.loads(scores.read_text()), trained=trained))


if __name__ == "__main__":
    main()
