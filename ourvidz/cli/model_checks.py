"""The checks of `ourvidz doctor` for models: torch and its GPUs, the checkpoints, and their options."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ourvidz.cli import libraries
from ourvidz.cli.checks import NETWORK_TIMEOUT_S, Check, failed, ok, skipped
from ourvidz.errors import HubError, ModelLoadError
from ourvidz.hub.manifest import changed_files, read_manifest
from ourvidz.net.client import HttpClient, RequestFailure
from ourvidz.pipelines import weight_kinds
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.folder_weights import TRANSFORMERS_WEIGHTS, require_weights
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal

SDXL_GIB = 11
"""GPU memory that the SDXL worker needs in production: 6.6 GiB of weights, 3 GiB to decode an image of
1024x1024 px in float32, and what CUDA and the libraries take. Cards of 12 GB show less than 12 GiB."""
THRESHOLD_CACHES = ("first_block", "mag")
"""The step caches of Wan that use a threshold."""
TORCH_TIMEOUT_S = 120
"""How long the import of torch may take."""
DEFAULTS = "defaults of the checkpoint and the device"

_FILES_FIX = "correct OURVIDZ_SDXL_LORAS, OURVIDZ_SDXL_JOB_LORAS or OURVIDZ_IP_ADAPTER…"
_MIB = 1 << 20
_PROBE_TORCH = """
import json, torch
gpus = []
for index in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(index)
    gpus.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def check_torch(settings: Settings) -> list[Check]:
    """The torch version, then its GPUs. Imported in a child process: this one must stay without torch."""
    if missing := libraries.missing_libraries(settings):
        reason = f"this installation has no libraries for models ({', '.join(missing)})"
        return [failed("torch", reason, libraries.INSTALL)]
    command = (sys.executable, "-c", _PROBE_TORCH)
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        reason = f"import took longer than {TORCH_TIMEOUT_S} s"
        return [failed("torch", reason, "check the disk and the GPU driver (nvidia-smi)")]
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        return [failed("torch", reason, libraries.INSTALL)]
    probe = json.loads(run.stdout.strip().splitlines()[-1])
    build = f"CUDA {probe['cuda']}" if probe["cuda"] else "CPU only"
    gpus = check_gpus(
        probe["gpus"],
        production=settings.profile == "production",
        required=settings.requires_gpu,
        group_offload=settings.wan_group_offload,
    )
    return [ok("torch", f"{probe['torch']} ({build})"), gpus]


def check_gpus(
    gpus: list[dict[str, Any]], *, production: bool, required: bool, group_offload: bool = False
) -> Check:
    """Whether the GPUs (`name`; `free` and `total` memory in bytes) suffice. `required`: no worker loads its
    models without one."""
    if not gpus:
        if group_offload:
            reason = "torch sees no GPU, and OURVIDZ_WAN_GROUP_OFFLOAD needs one: no Wan worker starts"
            return failed("gpu", reason, "leave OURVIDZ_WAN_GROUP_OFFLOAD out")
        if not required:
            return skipped("gpu", "none; the models run on the CPU")
        return failed("gpu", "torch sees no GPU", "install the driver and a CUDA build of torch")
    memory = "; ".join(
        f"{gpu['name']}: {gpu['free'] // _MIB} of {gpu['total'] // _MIB} MiB free" for gpu in gpus
    )
    if production and max(gpu["total"] for gpu in gpus) < SDXL_GIB << 30:
        return failed("gpu", memory, f"SDXL needs a GPU with {SDXL_GIB} GiB")
    return ok("gpu", memory)


def check_sdxl_checkpoint(settings: Settings) -> Check:
    """The checkpoint of the SDXL worker; skipped in production where none is set."""
    if settings.profile == "production" and settings.sdxl_model is None:
        return skipped("checkpoints", "OURVIDZ_SDXL_MODEL is not set: no SDXL worker can run here")
    check = _check_checkpoint(
        "checkpoints",
        "OURVIDZ_SDXL_MODEL",
        lambda: find_sdxl(settings.sdxl_model, config=settings.sdxl_config, vae=settings.sdxl_vae),
    )
    for variable, path in (
        ("OURVIDZ_SDXL_VAE", settings.sdxl_vae),
        ("OURVIDZ_SDXL_CONFIG", settings.sdxl_config),
    ):
        if check.status == "failed" and path is not None and str(path) in check.reason:
            return failed(check.name, check.reason, f"correct {variable}, or leave it out")
    return check


def check_sdxl_options(settings: Settings) -> Check:
    """The options of the SDXL worker, and that the LoRA and IP-Adapter files they name are such files."""
    loras = (*settings.sdxl_loras, *settings.sdxl_job_loras)
    files = [
        *(Path(lora.partition("=")[2].partition("@")[0]).expanduser() for lora in loras),
        *(path for path in (settings.ip_adapter, settings.ip_adapter_encoder) if path),
    ]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        return failed("sdxl", f"missing: {', '.join(missing)}", _FILES_FIX)
    try:
        for file in files[: len(loras)]:
            weight_kinds.require(file, "lora", wanted="a LoRA")
        if settings.ip_adapter:
            weight_kinds.require(settings.ip_adapter, "ip-adapter", wanted="an IP-Adapter")
        if settings.ip_adapter_encoder:
            require_weights(
                settings.ip_adapter_encoder,
                TRANSFORMERS_WEIGHTS,
                "clip image encoder",
                wanted="a CLIP image encoder",
            )
    except ModelLoadError as error:
        return failed("sdxl", error.message, _FILES_FIX)
    options = {
        "scheduler": settings.sdxl_scheduler,
        "few steps": settings.sdxl_few_steps,
        "dtype": settings.sdxl_dtype,
        "attention": settings.sdxl_attention,
        "compiled": settings.sdxl_compile,
        "channels last": settings.sdxl_channels_last,
        "VAE dtype": settings.sdxl_vae_dtype if settings.sdxl_vae_dtype != "float32" else None,
        "VAE always tiled": settings.sdxl_vae_tiling == "always",
        "LoRAs": " ".join(lora.partition("=")[0] for lora in settings.sdxl_loras),
        "LoRAs by name": " ".join(lora.partition("=")[0] for lora in settings.sdxl_job_loras),
        "IP-Adapter": settings.ip_adapter and settings.ip_adapter.stem,
    }
    return ok("sdxl", _format_options(options))


def check_wan_checkpoint(settings: Settings) -> Check:
    """The checkpoints of the Wan worker, VACE included; skipped in production where none is set."""
    name = "wan checkpoint"
    if settings.profile == "production" and settings.wan_model is None:
        return skipped(name, "OURVIDZ_WAN_MODEL is not set: no Wan worker can run here")
    text_to_video = _check_checkpoint(
        name, "OURVIDZ_WAN_MODEL", lambda: find_wan(settings.wan_model, expected="t2v")
    )
    if text_to_video.status != "ok" or settings.wan_vace_model is None:
        return text_to_video
    vace = _check_checkpoint(
        name, "OURVIDZ_WAN_VACE_MODEL", lambda: find_wan(settings.wan_vace_model, expected="vace")
    )
    return ok(name, f"{text_to_video.reason}; {vace.reason}") if vace.status == "ok" else vace


def check_wan_options(settings: Settings) -> Check:
    """The options of the Wan worker, and that a cache threshold belongs to a cache that uses it."""
    if settings.wan_cache_threshold is not None and settings.wan_cache not in THRESHOLD_CACHES:
        reason = f"OURVIDZ_WAN_CACHE_THRESHOLD has no effect: only {' and '.join(THRESHOLD_CACHES)} use it"
        return failed("wan", reason, "leave it out, or set OURVIDZ_WAN_CACHE to one of them")
    options = {
        "dtype": settings.wan_dtype,
        "attention": settings.wan_attention,
        "compiled": settings.wan_compile,
        "few steps": settings.wan_few_steps,
        "cache": settings.wan_cache,
        "threshold": settings.wan_cache_threshold,
        "VAE always tiled": settings.wan_vae_tiling == "always",
        "group offload": settings.wan_group_offload,
        "frames x pixels at most": settings.wan_max_frame_pixels,
    }
    return ok("wan", _format_options(options))


def check_qwen(settings: Settings) -> Check:
    """The two language models of the chat worker: local checkpoints, or servers with the OpenAI API."""
    servers: dict[QwenVariant, str | None] = {
        "instruct": settings.qwen_instruct_url,
        "base": settings.qwen_base_url,
    }
    if settings.profile == "production" and settings.qwen_model is None and not any(servers.values()):
        return skipped("qwen", "OURVIDZ_QWEN_MODEL is not set: no chat worker can run here")
    checks = [_check_qwen_variant(settings, variant, url) for variant, url in servers.items()]
    failure = next((check for check in checks if check.status == "failed"), None)
    return failure or ok("qwen", "; ".join(check.reason for check in checks))


def _check_qwen_variant(settings: Settings, variant: QwenVariant, url: str | None) -> Check:
    """Check the remote server of a Qwen variant, or else its local checkpoint."""
    variable = f"OURVIDZ_QWEN_{variant.upper()}_URL"
    if url is not None:
        return _check_openai_server(f"{url.rstrip('/')}/models", reveal(settings.qwen_key), variable)
    if settings.profile == "production" and settings.qwen_model is None:
        return failed("qwen", f"there is no {variant} model", f"set OURVIDZ_QWEN_MODEL or {variable}")
    return _check_checkpoint("qwen", "OURVIDZ_QWEN_MODEL", lambda: find_qwen(settings.qwen_model, variant))


def _check_openai_server(url: str, key: str | None, variable: str) -> Check:
    """`url` is the server's list of models: GET needs the key that the worker will use."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = HttpClient(timeout_s=NETWORK_TIMEOUT_S).get(url, headers=headers)
    if isinstance(response, RequestFailure):
        return failed("qwen", f"{url}: {response.reason}", f"start that server, or correct {variable}")
    if response.status != HTTPStatus.OK:
        fix = f"correct {variable} or OURVIDZ_QWEN_KEY"
        return failed("qwen", f"{url} answers {response.status}", fix)
    return ok("qwen", f"{url} answers")


def _check_checkpoint(name: str, variable: str, find: Callable[[], Checkpoint]) -> Check:
    """Whether `find` finds a complete checkpoint; `variable` is the setting that names its path."""
    try:
        checkpoint = find()
        manifest = read_manifest(checkpoint.path)
    except ModelLoadError as error:
        return failed(name, error.message, f"set {variable} to the checkpoint, or `ourvidz models pull`")
    except HubError as error:
        return failed(name, error.message, "`ourvidz models pull`")
    if manifest and (change := next(changed_files(checkpoint.path, manifest, contents=False), None)):
        return failed(name, change, "`ourvidz models pull` mends it")
    return ok(name, f"{checkpoint.name} ({checkpoint.kind}) at {checkpoint.path}")


def _format_options(options: Mapping[str, object]) -> str:
    """The options that are set, as `name value; name value`; a true flag is its name alone."""
    texts = [name if value is True else f"{name} {value}" for name, value in options.items() if value]
    return "; ".join(texts) or DEFAULTS
