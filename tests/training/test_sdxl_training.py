from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from training.export import CHECKSUMS, digest, shipped
from training.runs import Length, Run, learning_rate
from training.sdxl import latents, models, unet, vae
from training.sdxl.__main__ import STAGES, Workshop, main
from training.sdxl.evaluate import open_pipeline, picture
from training.sdxl.recipe import Recipe
from training.sdxl.tokens import sample_captions, tokenizers
from training.world import is_held_out


def test_every_stage_runs_and_the_pipeline_serves_the_export(workshop: Workshop) -> None:
    """The whole road on a tiny scale: train, export, load with the real pipeline, measure, draw."""
    for stage in STAGES:
        workshop.run(stage)
    scores = json.loads((workshop.out / "scores.json").read_text())
    assert {"held out", "without the prompt", "guidance 1", "guidance 5", "64 px"} <= set(scores)
    assert 0 <= scores["held out"]["shape"] <= 1
    assert {f"exact copy below the vae round trip, {kind} dB" for kind in ("mean", "worst")} <= set(scores)
    for drawn in ("vae-loss.png", "unet-loss.png", "grid.png"):
        assert Image.open(workshop.out / drawn).width > 100
    made = picture(open_pipeline(workshop.exported), "a red circle", seed=1, size_px=96)
    assert made.size == (96, 96)


def test_the_export_is_half_precision_with_true_checksums(workshop: Workshop) -> None:
    """It ships inside the package: small, and verified when it is loaded."""
    from safetensors import safe_open

    for stage in STAGES[:4]:
        workshop.run(stage)
    listed = dict(
        reversed(line.split("  ")) for line in (workshop.exported / CHECKSUMS).read_text().splitlines()
    )
    files = shipped(workshop.exported)
    assert listed == {str(file.relative_to(workshop.exported)): digest(file) for file in files}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
            assert kinds == {torch.float16}


@pytest.mark.parametrize("name", ["vae", "unet"])
def test_a_run_in_two_pieces_ends_like_a_run_in_one(minute_recipe: Recipe, tmp_path: Path, name: str) -> None:
    """A training run takes hours; a machine that restarts must not cost one, nor change the result."""
    whole, pieces = (
        _until(minute_recipe, tmp_path / way, name, way == "pieces") for way in ("whole", "pieces")
    )
    assert whole.keys() == pieces.keys()
    for key in whole:
        torch.testing.assert_close(whole[key], pieces[key], rtol=1e-4, atol=1e-5)


def _until(recipe: Recipe, folder: Path, name: str, killed: bool) -> dict[str, torch.Tensor]:
    """The weights of the finished VAE or UNet; `killed` stops after half the steps, without a last save of
    what came after the third step, and begins again from the files."""
    first, _ = vae.prepare(recipe, folder)
    latents.make(recipe, folder, first.eval())
    shelves = latents.read(recipe, folder, first)
    if killed:
        _stop_halfway(recipe, folder, name, shelves)
    if name == "vae":
        return vae.train(recipe, folder).state_dict()
    return unet.train(recipe, folder, shelves).unet.state_dict()


def _stop_halfway(recipe: Recipe, folder: Path, name: str, shelves: list[latents.Shelf]) -> None:
    class Killed(BaseException):
        pass

    learn, save = Run._learn, Run.save

    def learn_and_die(run: Run, loss_of: object) -> float:
        if run.step == 3:
            save(run)
        if run.step == 5:
            raise Killed
        return learn(run, loss_of)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_learn", learn_and_die)
        with pytest.raises(Killed):
            vae.train(recipe, folder) if name == "vae" else unet.train(recipe, folder, shelves)


def test_a_finished_run_is_left_as_it_is(minute_recipe: Recipe, tmp_path: Path) -> None:
    """The command that trains everything may be started again."""
    vae.train(minute_recipe, tmp_path)
    before = vae.prepare(minute_recipe, tmp_path)[0].state_dict()
    again = vae.train(minute_recipe, tmp_path).state_dict()
    assert all(torch.equal(before[key], again[key]) for key in before)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    """Saved on, it would spoil everything trained before it."""
    layer = torch.nn.Linear(1, 1)
    run = Run(tmp_path, "broken", {"layer": layer}, length=Length(5), peak_lr=0.1)
    with pytest.raises(ArithmeticError):
        run.train(lambda _step, _progress: layer.weight.sum() * float("nan"))
    assert not (tmp_path / "broken.pt").exists()


def test_the_learning_rate_rises_and_then_falls_to_nothing() -> None:
    """A run that ends at full speed ends anywhere."""
    rates = [learning_rate(1.0, progress) for progress in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_a_run_ends_at_its_minutes_or_its_steps() -> None:
    """Whichever comes first."""
    assert Length(100, minutes=10).progress(10, 60) == pytest.approx(0.1)
    assert Length(100, minutes=10).progress(10, 540) == pytest.approx(0.9)


def test_the_moving_average_is_what_is_exported(tmp_path: Path) -> None:
    """Averaged weights draw cleaner pictures than the last ones."""
    layer = torch.nn.Linear(1, 1, bias=False)
    run = Run(tmp_path, "slow", {"layer": layer}, length=Length(50), peak_lr=0.1, ema_decay=0.99)
    seen = []

    def loss_of(_step: int, _progress: float) -> torch.Tensor:
        seen.append(layer.weight.item())
        return (layer.weight - 100).square().sum()

    run.train(loss_of)
    last = layer.weight.item()
    run.use_average()
    assert min(seen) < layer.weight.item() < last


def test_the_vae_starts_as_a_block_average() -> None:
    """Untrained it already returns plain colours: the minutes in which it would learn to are saved."""
    torch.manual_seed(0)
    fresh = models.vae(models.Shape()).eval()
    plain = torch.rand(6, 3, 1, 1).expand(6, 3, 64, 64) * 1.6 - 0.8
    with torch.no_grad():
        back = fresh.decode(fresh.encode(plain).latent_dist.mode()).sample
    assert (back - plain).abs().mean() < 0.25
    assert torch.corrcoef(torch.stack([back.flatten(), plain.flatten()]))[0, 1] > 0.9


def test_whitened_latents_decode_to_the_same_pictures(minute_recipe: Recipe) -> None:
    """Centring and scaling the latents is a change of units, not of the VAE."""
    torch.manual_seed(0)
    whitened = models.vae(minute_recipe.shape).eval()
    pictures = vae.to_tensor(vae.batch(np.random.default_rng(1), 32, pieces=False))
    with torch.no_grad():
        before = whitened.decode(whitened.encode(pictures).latent_dist.mode()).sample
        latents.whiten(whitened, seed=1)
        coded = whitened.encode(pictures).latent_dist.mode()
        after = whitened.decode(coded).sample
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)
    assert coded.mean(dim=(0, 2, 3)).abs().max() < 0.5
    assert 0.5 < coded.std(dim=(0, 2, 3)).min() < coded.std(dim=(0, 2, 3)).max() < 2


def test_no_training_latent_shows_a_held_out_combination(minute_recipe: Recipe) -> None:
    """The promise behind every held-out score."""
    for _, scenes in latents.sized_scenes(minute_recipe):
        assert not any(is_held_out(scene.combination) for scene in scenes)


def test_the_words_of_the_world_are_single_tokens() -> None:
    """A word in pieces has to be put together again by text encoders of two layers."""
    first, second = tokenizers(7)
    for text in sample_captions(99, 40):
        words = text.replace(",", " ,").split()
        assert len(first.tokenize(text)) == len(words)
        assert first.tokenize(text) == second.tokenize(text)


def test_any_text_can_be_read() -> None:
    """Callers write what they like; nothing may be lost or unknown."""
    first, _ = tokenizers(7)
    ids = first("Ünïcorns & 🦄, 東京!").input_ids
    assert first.decode(ids, skip_special_tokens=True).replace(" ", "") == "ünïcorns&🦄,東京!"


def test_the_end_token_has_the_highest_id_and_the_second_pads_with_an_exclamation_mark() -> None:
    """CLIP pools where the highest id stands; prompt weighting relies on SDXL's padding."""
    first, second = tokenizers(7)
    assert first.eos_token_id == len(first) - 1
    assert first.pad_token_id == first.eos_token_id
    assert second.pad_token == "!"
    assert second.pad_token_id != second.eos_token_id


def test_dropped_prompts_are_what_the_pipeline_guides_away_from(minute_recipe: Recipe) -> None:
    """Nothing for a missing negative prompt, the empty text for an empty one; some of each."""
    from dataclasses import replace

    denoiser = unet.Denoiser(replace(minute_recipe, prompt_dropout=1.0))
    scenes = next(latents.sized_scenes(minute_recipe))[1] * 4
    with torch.no_grad():
        tokens, pooled = denoiser.words(scenes, np.random.default_rng(0))
        empty_tokens, empty_pooled = denoiser.encode([""])
    nothing = tokens.abs().sum(dim=(1, 2)) == 0
    assert 0 < nothing.sum() < len(scenes)
    torch.testing.assert_close(tokens[~nothing][0], empty_tokens[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pooled[~nothing][0], empty_pooled[0], rtol=1e-3, atol=1e-4)
    assert not pooled[nothing].any()


def test_the_command_says_what_it_needs() -> None:
    """One command a model, told by its help."""
    told = CliRunner().invoke(main, ["--help"])
    assert told.exit_code == 0
    assert all(word in told.output for word in ("--minutes-vae", "--minutes-unet", "--out", "evaluate"))
