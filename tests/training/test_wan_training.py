from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from training.captions import clip_caption
from training.export import CHECKSUMS, digest, exported_files
from training.scenes import is_held_out, random_clip
from training.sdxl.tokenization import sample_captions
from training.wan import latents, models, transformer, vae
from training.wan.__main__ import Stages, main
from training.wan.evaluate import clip_frames, open_pipeline
from training.wan.models import Shape
from training.wan.position_channels import CHANNELS, initialize_position_channels
from training.wan.recipe import Recipe
from training.wan.tokenization import TOKENS, train_tokenizer


@pytest.fixture(scope="module")
def minute_recipe() -> Recipe:
    """A recipe whose stages take a second or two each: a few steps of models with a few thousand weights."""
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
        sheet_captions=1,
        position_clips=4,
        statistics_clips=4,
        reconstructed=2,
    )


@pytest.fixture(scope="module")
def finished(minute_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A training run whose stages have all been run."""
    stages = Stages(minute_recipe, tmp_path_factory.mktemp("wan") / "run")
    for name in Stages.NAMES:
        stages.run(name)
    return stages


@pytest.fixture(scope="module")
def tokenizer() -> object:
    """The tokenizer of tiny-wan."""
    return train_tokenizer(7)


def test_every_stage_writes_its_results(finished: Stages) -> None:
    """Scores, loss curves, the contact sheet and an export with checksums."""
    scores = json.loads((finished.out / "scores.json").read_text())
    assert {"held out", "without the prompt", "guidance 1", "33 frames", "83 frames"} <= set(scores)
    assert 0 <= scores["held out"]["motion"] <= 1
    for name in ("vae-loss.png", "transformer-loss.png", "grid.png"):
        assert Image.open(finished.out / name).width > 100
    folder = finished.export_folder
    lines = (folder / CHECKSUMS).read_text().splitlines()
    assert dict(reversed(line.split("  ")) for line in lines) == {
        str(file.relative_to(folder)): digest(file) for file in exported_files(folder)
    }


def test_the_pipeline_serves_the_export(finished: Stages) -> None:
    """The export is a checkpoint like any other."""
    frames = clip_frames(open_pipeline(finished.export_folder), "a red circle", seed=1, frames=7, steps=2)
    assert [frame.size for frame in frames] == [(64, 64)] * 7


def test_the_exported_config_undoes_the_normalization_of_the_latents(finished: Stages) -> None:
    """Wan's pipelines read the statistics of the latents from the VAE's config; wrong ones give wrong
    colours."""
    trained, _ = vae.prepare(finished.recipe, finished.out)
    statistics = latents.restore_vae(trained, finished.out)
    config = json.loads((finished.export_folder / "vae" / "config.json").read_text())
    clip = random_clip(np.random.default_rng((7, 12, 0, 0)), held_out=False)
    with torch.no_grad():
        encoded = (
            trained.eval().encode(vae.to_tensor(latents.render_subject(clip, 9)[None])).latent_dist.mode()
        )
    normalized = latents.read(finished.recipe, finished.out)[0].latents[0]
    mean, deviation = (
        torch.tensor(config[name])[:, None, None, None] for name in ("latents_mean", "latents_std")
    )
    torch.testing.assert_close(normalized * deviation + mean, encoded[0], rtol=5e-3, atol=5e-3)
    assert config["latents_mean"] == pytest.approx(statistics.mean)


@pytest.mark.parametrize("name", ["vae", "transformer"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    minute_recipe: Recipe, tmp_path: Path, name: str
) -> None:
    """A run takes an hour; a restart must neither lose it nor change its result."""
    results = []
    for stops in ((4 if name == "vae" else 6,), (2, 4 if name == "vae" else 6)):
        folder = tmp_path / str(len(stops))
        for step in stops:
            weights = _trained_until(minute_recipe, folder, name, step)
        results.append(weights)
    expected, resumed = results
    for key in expected:
        torch.testing.assert_close(expected[key], resumed[key], rtol=1e-4, atol=1e-5)


def _trained_until(recipe: Recipe, folder: Path, name: str, step: int) -> dict[str, torch.Tensor]:
    """The weights after `step` steps, resumed from the files of an earlier call."""
    model, run = vae.prepare(recipe, folder)
    if name == "vae":
        run.train(lambda index, _progress: _vae_loss(recipe, model, index), until_step=step)
        return {key: value.clone() for key, value in model.state_dict().items()}
    latents.write(recipe, folder, model.eval())
    data = latents.read(recipe, folder)
    denoiser, run = transformer.prepare(recipe, folder)
    run.train(lambda index, _progress: denoiser.loss(data[0], np.random.default_rng(index)), until_step=step)
    return {key: value.clone() for key, value in denoiser.transformer.state_dict().items()}


def _vae_loss(recipe: Recipe, model: object, step: int) -> torch.Tensor:
    clips = vae.batch(np.random.default_rng(step), recipe.vae_batch, crops=True)
    return vae.loss(model, vae.to_tensor(clips), torch.Generator().manual_seed(step))  # type: ignore[arg-type]


def test_the_initial_vae_returns_block_averages() -> None:
    """Before training it reproduces plain colours."""
    torch.manual_seed(0)
    model = models.build_vae(Shape()).eval()
    plain = torch.rand(4, 3, 1, 1, 1).expand(4, 3, 9, 32, 32) * 1.6 - 0.8
    with torch.no_grad():
        output = model.decode(model.encode(plain).latent_dist.mode()).sample
    assert torch.corrcoef(torch.stack([output.flatten(), plain.flatten()]))[0, 1] > 0.9
    assert vae.reconstruction_db(model, seed=7, count=2) > 15


def test_a_latent_frame_depends_on_no_later_frame() -> None:
    """The VAE is causal, so that a start frame can be fixed while the rest is generated."""
    torch.manual_seed(0)
    model = models.build_vae(Shape()).eval()
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    changed = clip.clone()
    changed[:, :, 5:] = 0
    with torch.no_grad():
        first, second = (model.encode(one).latent_dist.mode() for one in (clip, changed))
    assert first.shape[2] == 3
    torch.testing.assert_close(first[:, :, :2], second[:, :, :2])
    assert (first[:, :, 2] - second[:, :, 2]).abs().max() > 0.01


def test_the_last_latent_channels_encode_the_position() -> None:
    """The transformer has relative positions only and would hardly learn left and right."""
    torch.manual_seed(0)
    model = models.build_vae(Shape()).eval()
    clips = vae.to_tensor(vae.batch(np.random.default_rng(3), 4, crops=False))
    with torch.no_grad():
        before = model.encode(clips).latent_dist.mode()
        initialize_position_channels(model, clips)
        after = model.encode(clips).latent_dist.mode()
    horizontal, vertical, temporal = (after[:, -CHANNELS + k].mean(dim=0) for k in range(CHANNELS))
    assert horizontal[:, :, 0].max() < -0.5 < horizontal[:, :, 1:-1].min()
    assert horizontal[:, :, -1].min() > 0.5 > horizontal[:, :, 1:-1].max()
    assert vertical[:, 0].max() < -0.5
    assert vertical[:, -1].min() > 0.5
    assert temporal[0].min() > 0.7 > temporal[1:].max()
    torch.testing.assert_close(before[:, :-CHANNELS], after[:, :-CHANNELS], rtol=0.05, atol=0.3)


def test_the_decoder_ignores_the_position_channels() -> None:
    """Errors of the transformer in them must not change the clip."""
    torch.manual_seed(0)
    model = models.build_vae(Shape()).eval()
    clips = vae.to_tensor(vae.batch(np.random.default_rng(3), 2, crops=False))
    with torch.no_grad():
        initialize_position_channels(model, clips)
        encoded = model.encode(clips).latent_dist.mode()
        changed = encoded.clone()
        changed[:, -CHANNELS:] += 1
        first, second = (model.decode(one).sample for one in (encoded, changed))
    torch.testing.assert_close(first, second)


def test_no_training_clip_is_held_out(minute_recipe: Recipe) -> None:
    """Held-out scores rely on it."""
    for _, subjects in latents.training_clips(minute_recipe):
        assert not any(is_held_out(subject.combination) for subject in subjects)


def test_a_clip_of_one_frame_has_the_caption_of_a_scene(minute_recipe: Recipe) -> None:
    """Wan generates images too, and one frame has no motion."""
    rng = np.random.default_rng(1)
    by_length = dict(latents.training_clips(minute_recipe))
    text = " ".join(latents.random_caption(one, rng) for one in by_length[1])
    assert not any(
        word in text for word in ("moving", "sliding", "growing", "shrinking", "rising", "falling")
    )
    assert latents.render_subject(by_length[1][0], 1).shape == (1, 64, 64, 3)


def test_the_words_of_captions_are_single_tokens(tokenizer: object) -> None:
    """A text encoder of two layers learns whole words more easily than pieces."""
    for text in sample_captions(99, 40):
        assert len(tokenizer.tokenize(text)) == len(text.replace(",", " ,").split())  # type: ignore[attr-defined]


def test_the_longest_caption_fits_the_prompt(tokenizer: object) -> None:
    """Prompts are padded to a fixed length, and truncated captions would be wrong."""
    generators = (np.random.default_rng(k) for k in range(300))
    texts = [clip_caption(random_clip(rng, held_out=False), rng) for rng in generators]
    assert max(len(tokenizer(text).input_ids) for text in texts) < TOKENS  # type: ignore[operator]


def test_prompt_embeddings_are_zero_after_the_end_of_the_text(minute_recipe: Recipe) -> None:
    """Wan's pipeline pads prompt embeddings with zeros, and training must do the same."""
    denoiser = transformer.Denoiser(minute_recipe)
    with torch.no_grad():
        hidden = denoiser.encode(["a red circle"])
    assert hidden.shape[1] == TOKENS
    assert hidden[0, 4:].abs().max() == 0
    assert hidden[0, :3].abs().min(dim=1).values.max() > 0


def test_training_favours_high_noise(minute_recipe: Recipe) -> None:
    """Sampling takes most of its steps at high noise; every level must still occur."""
    sigmas = transformer.Denoiser(minute_recipe)._sigmas(1000, np.random.default_rng(0))
    assert 0 <= sigmas.min() < 0.02
    assert 0.98 < sigmas.max() <= 1
    assert sigmas.mean() > 0.6


def test_the_help_lists_stages_and_options() -> None:
    """The command is documented by its help."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(
        word in result.output for word in ("--minutes-vae", "--minutes-transformer", "--out", "evaluate")
    )
