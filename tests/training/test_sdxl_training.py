from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

from training.export import CHECKSUMS, digest, exported_files
from training.runs import Length, Run, learning_rate
from training.scenes import is_held_out
from training.sdxl import latents, models, unet, vae
from training.sdxl.__main__ import Stages, main
from training.sdxl.evaluate import generate, open_pipeline
from training.sdxl.models import Shape
from training.sdxl.recipe import Recipe
from training.sdxl.tokenization import sample_captions, train_tokenizers


@pytest.fixture(scope="module")
def minute_recipe() -> Recipe:
    """A recipe whose stages take about a second each: a few steps of models with a few thousand weights."""
    return Recipe(
        shape=Shape(
            vae_channels=(16, 16, 16, 16), unet_channels=(16, 32), unet_heads=(2, 2), text_widths=(16, 24)
        ),
        vae_steps=6,
        vae_batch=2,
        latents=8,
        sizes={(64, 64): 0.8, (64, 96): 0.2},
        unet_steps=6,
        unet_batch=2,
        evaluated=1,
        sheet_captions=2,
        normalization_images=8,
        reconstructed=4,
    )


@pytest.fixture(scope="module")
def finished(minute_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A training run whose stages have all been run."""
    stages = Stages(minute_recipe, tmp_path_factory.mktemp("sdxl") / "run")
    for name in Stages.NAMES:
        stages.run(name)
    return stages


def test_every_stage_writes_its_results(finished: Stages) -> None:
    """Scores, loss curves and the contact sheet."""
    scores = json.loads((finished.out / "scores.json").read_text())
    assert {"held out", "without the prompt", "guidance 1", "guidance 5", "64 px"} <= set(scores)
    assert 0 <= scores["held out"]["shape"] <= 1
    assert {f"exact copy below the vae round trip, {kind} dB" for kind in ("mean", "worst")} <= set(scores)
    for name in ("vae-loss.png", "unet-loss.png", "grid.png"):
        assert Image.open(finished.out / name).width > 100


def test_the_pipeline_serves_the_export(finished: Stages) -> None:
    """The export is a checkpoint like any other."""
    image = generate(open_pipeline(finished.export_folder), "a red circle", seed=1, size_px=96)
    assert image.size == (96, 96)


def test_the_export_is_in_half_precision_with_checksums(finished: Stages) -> None:
    """The package contains it, and workers verify it when they load it."""
    folder = finished.export_folder
    lines = (folder / CHECKSUMS).read_text().splitlines()
    files = exported_files(folder)
    assert dict(reversed(line.split("  ")) for line in lines) == {
        str(file.relative_to(folder)): digest(file) for file in files
    }
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                dtypes = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
            assert dtypes == {torch.float16}


@pytest.mark.parametrize("name", ["vae", "unet"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    minute_recipe: Recipe, tmp_path: Path, name: str
) -> None:
    """A run takes hours; a restart must neither lose it nor change its result."""
    expected, resumed = (
        _trained_weights(minute_recipe, tmp_path / str(killed), name, killed) for killed in (False, True)
    )
    assert expected.keys() == resumed.keys()
    for key in expected:
        torch.testing.assert_close(expected[key], resumed[key], rtol=1e-4, atol=1e-5)


def _trained_weights(recipe: Recipe, folder: Path, name: str, killed: bool) -> dict[str, torch.Tensor]:
    """The weights of the trained VAE or UNet. With `killed` the run is killed at step 5 after a save at step
    3, and resumed from its files."""
    model, _ = vae.prepare(recipe, folder)
    latents.write(recipe, folder, model.eval())
    data = latents.read(recipe, folder, model)
    if killed:
        _train_and_kill(recipe, folder, name, data)
    if name == "vae":
        return vae.train(recipe, folder).state_dict()
    return unet.train(recipe, folder, data).unet.state_dict()


def _train_and_kill(recipe: Recipe, folder: Path, name: str, data: list[latents.LatentSet]) -> None:
    class Killed(BaseException):
        pass

    step, save = Run._step, Run.save

    def step_or_die(run: Run, step_loss: object) -> float:
        if run.step == 3:
            save(run)
        if run.step == 5:
            raise Killed
        return step(run, step_loss)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_step", step_or_die)
        with pytest.raises(Killed):
            vae.train(recipe, folder) if name == "vae" else unet.train(recipe, folder, data)


def test_a_finished_run_is_not_changed(minute_recipe: Recipe, tmp_path: Path) -> None:
    """The command that runs every stage may be repeated."""
    vae.train(minute_recipe, tmp_path)
    before = vae.prepare(minute_recipe, tmp_path)[0].state_dict()
    again = vae.train(minute_recipe, tmp_path).state_dict()
    assert all(torch.equal(before[key], again[key]) for key in before)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """Weights with NaN must not replace the saved state."""
    layer = torch.nn.Linear(1, 1)
    run = Run(tmp_path, "broken", {"layer": layer}, length=Length(5), peak_lr=0.1)
    with pytest.raises(ArithmeticError):
        run.train(lambda _step, _progress: layer.weight.sum() * float("nan"))
    assert not (tmp_path / "broken.pt").exists()


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    """The last steps must be small."""
    rates = [learning_rate(1.0, progress) for progress in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_a_run_ends_at_its_minutes_or_its_steps() -> None:
    """The limit that is reached first counts."""
    assert Length(100, minutes=10).progress(10, 60) == pytest.approx(0.1)
    assert Length(100, minutes=10).progress(10, 540) == pytest.approx(0.9)


def test_the_moving_average_follows_the_weights(tmp_path: Path) -> None:
    """Averaged weights are exported, because they generate cleaner images."""
    layer = torch.nn.Linear(1, 1, bias=False)
    run = Run(tmp_path, "slow", {"layer": layer}, length=Length(50), peak_lr=0.1, ema_decay=0.99)
    weights = []

    def step_loss(_step: int, _progress: float) -> torch.Tensor:
        weights.append(layer.weight.item())
        return (layer.weight - 100).square().sum()

    run.train(step_loss)
    last = layer.weight.item()
    run.use_average()
    assert min(weights) < layer.weight.item() < last


def test_the_initial_vae_returns_block_averages() -> None:
    """Before training it reproduces plain colours."""
    torch.manual_seed(0)
    model = models.build_vae(models.Shape()).eval()
    plain = torch.rand(6, 3, 1, 1).expand(6, 3, 64, 64) * 1.6 - 0.8
    with torch.no_grad():
        output = model.decode(model.encode(plain).latent_dist.mode()).sample
    assert (output - plain).abs().mean() < 0.25
    assert torch.corrcoef(torch.stack([output.flatten(), plain.flatten()]))[0, 1] > 0.9


def test_normalized_latents_decode_to_the_same_images(minute_recipe: Recipe) -> None:
    """Normalization changes the units of the latents, not the VAE."""
    torch.manual_seed(0)
    model = models.build_vae(minute_recipe.shape).eval()
    images = vae.to_tensor(vae.batch(np.random.default_rng(1), 32, crops=False))
    with torch.no_grad():
        before = model.decode(model.encode(images).latent_dist.mode()).sample
        latents.normalize_latents(model, seed=1, count=64)
        encoded = model.encode(images).latent_dist.mode()
        after = model.decode(encoded).sample
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)
    assert encoded.mean(dim=(0, 2, 3)).abs().max() < 0.5
    assert 0.5 < encoded.std(dim=(0, 2, 3)).min() < encoded.std(dim=(0, 2, 3)).max() < 2


def test_no_training_scene_is_held_out(minute_recipe: Recipe) -> None:
    """Held-out scores rely on it."""
    for _, scenes in latents.training_scenes(minute_recipe):
        assert not any(is_held_out(scene.combination) for scene in scenes)


def test_the_words_of_captions_are_single_tokens() -> None:
    """Text encoders of two layers learn whole words more easily than pieces."""
    first, second = train_tokenizers(7)
    for text in sample_captions(99, 40):
        words = text.replace(",", " ,").split()
        assert len(first.tokenize(text)) == len(words)
        assert first.tokenize(text) == second.tokenize(text)


def test_any_text_can_be_encoded() -> None:
    """Prompts may contain any character."""
    first, _ = train_tokenizers(7)
    ids = first("Ünïcorns & 🦄, 東京!").input_ids
    assert first.decode(ids, skip_special_tokens=True).replace(" ", "") == "ünïcorns&🦄,東京!"


def test_the_end_token_has_the_highest_id_and_the_second_pads_with_an_exclamation_mark() -> None:
    """CLIP pools at the highest id; prompt weighting relies on the padding of SDXL."""
    first, second = train_tokenizers(7)
    assert first.eos_token_id == len(first) - 1
    assert first.pad_token_id == first.eos_token_id
    assert second.pad_token == "!"
    assert second.pad_token_id != second.eos_token_id


def test_dropped_prompts_are_zeros_or_the_empty_text(minute_recipe: Recipe) -> None:
    """The pipeline uses zeros without a negative prompt and the empty text for an empty one."""
    from dataclasses import replace

    denoiser = unet.Denoiser(replace(minute_recipe, prompt_dropout=1.0))
    scenes = next(latents.training_scenes(minute_recipe))[1] * 4
    with torch.no_grad():
        tokens, pooled = denoiser.encode_captions(scenes, np.random.default_rng(0))
        empty_tokens, empty_pooled = denoiser.encode([""])
    zeroed = tokens.abs().sum(dim=(1, 2)) == 0
    assert 0 < zeroed.sum() < len(scenes)
    torch.testing.assert_close(tokens[~zeroed][0], empty_tokens[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pooled[~zeroed][0], empty_pooled[0], rtol=1e-3, atol=1e-4)
    assert not pooled[zeroed].any()


def test_the_help_lists_stages_and_options() -> None:
    """The command is documented by its help."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(word in result.output for word in ("--minutes-vae", "--minutes-unet", "--out", "evaluate"))
