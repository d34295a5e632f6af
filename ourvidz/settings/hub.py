"""Settings of the hub from which `ourvidz models pull` downloads checkpoints."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from ourvidz.settings.kinds import LocalPath, Secret, Topic, WebURL, env

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?")


def _repository(value: str) -> str:
    """Return `value` unchanged. Raises `ValueError` if it is not `OWNER/NAME` or `OWNER/NAME@REVISION`."""
    if not _REPOSITORY.fullmatch(value):
        raise ValueError("must be OWNER/NAME or OWNER/NAME@REVISION")
    return value


Repository = Annotated[str, AfterValidator(_repository)]
"""A model repository, with the commit, tag or branch that is pulled; `main` without one."""


class HubSettings(Topic):
    """The hub, its repositories, and where pulled checkpoints are stored."""

    hf_token: Secret | None = env("HF_TOKEN")
    """Token for gated and private repositories; sent to the hub only, not to the hosts it redirects to."""
    hf_endpoint: WebURL | None = env("HF_ENDPOINT")
    """Another hub with the same protocol, such as a mirror."""
    configured_models_dir: LocalPath | None = env("OURVIDZ_MODELS_DIR")
    hub_sdxl: Repository = env(
        "OURVIDZ_HUB_SDXL",
        "stabilityai/stable-diffusion-xl-base-1.0@462165984030d82259a11f4367a4eed129e94a7b",
    )
    hub_wan: Repository = env(
        "OURVIDZ_HUB_WAN", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers@0fad780a534b6463e45facd96134c9f345acfa5b"
    )
    hub_vace: Repository = env(
        "OURVIDZ_HUB_VACE", "Wan-AI/Wan2.1-VACE-1.3B-diffusers@ec4d2cb062b548996b179d493fdd05340de702a1"
    )
    hub_qwen_instruct: Repository = env(
        "OURVIDZ_HUB_QWEN_INSTRUCT", "Qwen/Qwen2.5-7B-Instruct@a09a35458c702b33eeacc393d103063234e8bc28"
    )
    hub_qwen_base: Repository = env(
        "OURVIDZ_HUB_QWEN_BASE", "Qwen/Qwen2.5-7B@d149729398750b98c0af14eb82c78cfe92750796"
    )
    hub_ip_adapter: Repository = env(
        "OURVIDZ_HUB_IP_ADAPTER", "h94/IP-Adapter@018e402774aeeddd60609b4ecdb7e298259dc729"
    )
