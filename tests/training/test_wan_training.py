from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from training.captions import clip_caption
from training.export import CHECKSUMS, digest, shipped
from training.sdxl.tokens import sample_captions
from training.wan import latents, models, transformer, vae
from training.wan.__main__ import STAGES, Workshop, main
from training.wan.evaluate import clip_frames, open_pipeline
from training.wan.models import Shape
from training.wan.places import MARKS, mark_places
from training.wan.recipe import Recipe
from training.wan.tokens import TOKENS, tokenizer
from training.world import is_held_out, random_clip


@pytest.fixture
def minute_recipe() -> Recipe:
    """Every stage in a second or two: a few steps of models of a few thousand weights."""
    return Recipe(
        shape=Shape(
            vae_channels=16,
            vae_levels=(1, 1, 1),
            latent_channels=8,
            text_width=16,
            heads=2,
            head_width=16,
            layers=1,
            feed_forward=32,
        ),
        vae_steps=4,
        vae_batch=2,
        clips=8,
        lengths={9: 0.5, 1: 0.5},
        transformer_steps=6,
        transformer_batch=2,
        evaluated=1,
        drawn=1,
    )


@pytest.fixture
def workshop(minute_recipe: Recipe, tmp_path: Path) -> Workshop:
    """A training run in a folder of its own."""
    return Workshop(minute_recipe, tmp_path / "run")


@pytest.fixture(scope="module")
def words() -> object:
    """The tokenizer that ships."""
    return tokenizer(7)


def test_every_stage_runs_and_the_pipeline_serves_the_export(workshop: Workshop) -> None:
    """The whole road on a tiny scale: train, export, load with the real pipeline, measure, draw."""
    for stage in STAGES:
        workshop.run(stage)
    scores = json.loads((workshop.out / "scores.json").read_text())
    assert {"held out", "without the prompt", "guidance 1", "33 frames", "83 frames"} <= set(scores)
    assert 0 <= scores["held out"]["motion"] <= 1
    for drawn in ("vae-loss.png", "transformer-loss.png", "grid.png"):
        assert Image.open(workshop.out / drawn).width > 100
    listed = dict(
        reversed(line.split("  ")) for line in (workshop.exported / CHECKSUMS).read_text().splitlines()
    )
    assert listed == {
        str(file.relative_to(workshop.exported)): digest(file) for file in shipped(workshop.exported)
    }
    made = clip_frames(open_pipeline(workshop.exported), "a red circle", seed=1, frames=7, steps=2)
    assert [frame.size for frame in made] == [(64, 64)] * 7


def test_the_decoder_gets_back_what_the_latents_were_before_they_were_centred(workshop: Workshop) -> None:
    """Wan's pipelines read mean and deviation of every channel from the VAE's config; wrong ones would give
    wrong colours everywhere."""
    for stage in STAGES[:4]:
        workshop.run(stage)
    trained, _ = vae.prepare(workshop.recipe, workshop.out)
    found = latents.finish(trained, workshop.out)
    config = json.loads((workshop.exported / "vae" / "config.json").read_text())
    clip = random_clip(np.random.default_rng((7, 12, 0, 0)), held_out=False)
    with torch.no_grad():
        coded = trained.eval().encode(vae.to_tensor(latents.rendered(clip, 9)[None])).latent_dist.mode()
    kept = latents.read(workshop.recipe, workshop.out)[0].latents[0]
    mean, deviation = (
        torch.tensor(config[name])[:, None, None, None] for name in ("latents_mean", "latents_std")
    )
    torch.testing.assert_close(kept * deviation + mean, coded[0], rtol=5e-3, atol=5e-3)
    assert config["latents_mean"] == pytest.approx(found.mean)


@pytest.mark.parametrize("name", ["vae", "transformer"])
def test_a_run_in_two_pieces_ends_like_a_run_in_one(minute_recipe: Recipe, tmp_path: Path, name: str) -> None:
    """A training run takes an hour; a machine that restarts must not cost one, nor change the result."""
    ends = []
    for pieces in ((4 if name == "vae" else 6,), (2, 4 if name == "vae" else 6)):
        folder = tmp_path / str(len(pieces))
        for until in pieces:
            weights = _trained_until(minute_recipe, folder, name, until)
        ends.append(weights)
    whole, resumed = ends
    for key in whole:
        torch.testing.assert_close(whole[key], resumed[key], rtol=1e-4, atol=1e-5)


def _trained_until(recipe: Recipe, folder: Path, name: str, step: int) -> dict[str, torch.Tensor]:
    """The weights after so many steps, from the files an earlier call left."""
    coder, run = vae.prepare(recipe, folder)
    if name == "vae":
        run.train(lambda at, _progress: _vae_loss(recipe, coder, at), until_step=step)
        return {key: value.clone() for key, value in coder.state_dict().items()}
    latents.make(recipe, folder, coder.eval())
    shelves = latents.read(recipe, folder)
    denoiser, run = transformer.prepare(recipe, folder)
    run.train(lambda at, _progress: denoiser.loss(shelves[0], np.random.default_rng(at)), until_step=step)
    return {key: value.clone() for key, value in denoiser.transformer.state_dict().items()}


def _vae_loss(recipe: Recipe, coder: object, step: int) -> torch.Tensor:
    clips = vae.batch(np.random.default_rng(step), recipe.vae_batch, pieces=True)
    return vae.loss(coder, vae.to_tensor(clips), torch.Generator().manual_seed(step))  # type: ignore[arg-type]


def test_the_vae_starts_as_a_block_average() -> None:
    """Untrained it already returns plain colours: the minutes in which it would learn to are saved."""
    torch.manual_seed(0)
    fresh = models.vae(Shape()).eval()
    plain = torch.rand(4, 3, 1, 1, 1).expand(4, 3, 9, 32, 32) * 1.6 - 0.8
    with torch.no_grad():
        back = fresh.decode(fresh.encode(plain).latent_dist.mode()).sample
    assert torch.corrcoef(torch.stack([back.flatten(), plain.flatten()]))[0, 1] > 0.9
    assert vae.round_trip_db(fresh, seed=7, count=2) > 15


def test_a_latent_frame_never_sees_a_later_frame() -> None:
    """Causal in time: what a clip starts with can be held while the rest is made."""
    torch.manual_seed(0)
    fresh = models.vae(Shape()).eval()
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    changed = clip.clone()
    changed[:, :, 5:] = 0
    with torch.no_grad():
        first, second = (fresh.encode(one).latent_dist.mode() for one in (clip, changed))
    assert first.shape[2] == 3
    torch.testing.assert_close(first[:, :, :2], second[:, :, :2])
    assert (first[:, :, 2] - second[:, :, 2]).abs().max() > 0.01


def test_the_last_latent_channels_say_where_they_are() -> None:
    """The transformer hears only how far places are from each other: it would not learn where left is."""
    torch.manual_seed(0)
    marked = models.vae(Shape()).eval()
    clips = vae.to_tensor(vae.batch(np.random.default_rng(3), 4, pieces=False))
    with torch.no_grad():
        before = marked.encode(clips).latent_dist.mode()
        mark_places(marked, clips)
        after = marked.encode(clips).latent_dist.mode()
    across, down, along = (after[:, -MARKS + k].mean(dim=0) for k in range(MARKS))
    assert across[:, :, 0].max() < -0.5 < across[:, :, 1:-1].min()
    assert across[:, :, -1].min() > 0.5 > across[:, :, 1:-1].max()
    assert down[:, 0].max() < -0.5
    assert down[:, -1].min() > 0.5
    assert along[0].min() > 0.7 > along[1:].max()
    torch.testing.assert_close(before[:, :-MARKS], after[:, :-MARKS], rtol=0.05, atol=0.3)


def test_the_decoder_does_not_listen_to_the_marks() -> None:
    """Whatever the transformer makes of them, the clip is the same."""
    torch.manual_seed(0)
    marked = models.vae(Shape()).eval()
    clips = vae.to_tensor(vae.batch(np.random.default_rng(3), 2, pieces=False))
    with torch.no_grad():
        mark_places(marked, clips)
        latents_ = marked.encode(clips).latent_dist.mode()
        changed = latents_.clone()
        changed[:, -MARKS:] += 1
        first, second = (marked.decode(one).sample for one in (latents_, changed))
    torch.testing.assert_close(first, second)


def test_no_training_clip_shows_a_held_out_combination(minute_recipe: Recipe) -> None:
    """The promise behind every held-out score."""
    for _, shown in latents.training_clips(minute_recipe):
        assert not any(is_held_out(one.combination) for one in shown)


def test_a_single_frame_is_told_as_a_picture(minute_recipe: Recipe) -> None:
    """Wan makes pictures too; one frame cannot show a motion."""
    draw = np.random.default_rng(1)
    by_length = dict(latents.training_clips(minute_recipe))
    told = " ".join(latents.worded(one, draw) for one in by_length[1])
    assert not any(
        word in told for word in ("moving", "sliding", "growing", "shrinking", "rising", "falling")
    )
    assert latents.rendered(by_length[1][0], 1).shape == (1, 64, 64, 3)


def test_the_words_of_the_world_are_single_tokens(words: object) -> None:
    """A word in pieces has to be put together again by a text encoder of two layers."""
    for text in sample_captions(99, 40):
        assert len(words.tokenize(text)) == len(text.replace(",", " ,").split())  # type: ignore[attr-defined]


def test_the_longest_caption_fits_the_prompt(words: object) -> None:
    """Prompts are padded to a fixed length; a caption that were cut would teach the wrong thing."""
    draws = (np.random.default_rng(k) for k in range(300))
    texts = [clip_caption(random_clip(draw, held_out=False), draw) for draw in draws]
    assert max(len(words(text).input_ids) for text in texts) < TOKENS  # type: ignore[operator]


def test_text_behind_the_end_of_a_prompt_is_nothing(minute_recipe: Recipe) -> None:
    """Wan's pipeline pads the encoded prompt with zeros; training must see the same."""
    denoiser = transformer.Denoiser(minute_recipe)
    with torch.no_grad():
        hidden = denoiser.encode(["a red circle"])
    assert hidden.shape[1] == TOKENS
    assert hidden[0, 4:].abs().max() == 0
    assert hidden[0, :3].abs().min(dim=1).values.max() > 0


def test_training_looks_mostly_where_the_pipeline_works(minute_recipe: Recipe) -> None:
    """With a shift most steps are taken where there is much noise; every level is still seen."""
    sigmas = transformer.Denoiser(minute_recipe)._sigmas(1000, np.random.default_rng(0))
    assert 0 <= sigmas.min() < 0.02
    assert 0.98 < sigmas.max() <= 1
    assert sigmas.mean() > 0.6


def test_the_command_says_what_it_needs() -> None:
    """One command a model, told by its help."""
    told = CliRunner().invoke(main, ["--help"])
    assert told.exit_code == 0
    assert all(
        word in told.output for word in ("--minutes-vae", "--minutes-transformer", "--out", "evaluate")
    )
