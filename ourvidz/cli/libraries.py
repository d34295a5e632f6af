"""The libraries of the extra `worker`: which of them are missing here, and how to install them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ourvidz.errors import SettingsError
from ourvidz.settings import Settings

MEDIA_LIBRARIES = ("PIL", "numpy", "cv2", "av")
"""What every GPU worker imports."""
MODEL_LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "compel")
"""What the pipelines of this project import; the models of `OURVIDZ_MODELS` may do without."""
INSTALL = "pip install 'ourvidz[worker]'"


def missing_libraries(settings: Settings) -> tuple[str, ...]:
    """The libraries that a GPU worker needs under these settings and that are not installed. Imports none."""
    own_builder = settings.models != Settings.model_fields["models"].default
    needed = MEDIA_LIBRARIES if own_builder else (*MODEL_LIBRARIES, *MEDIA_LIBRARIES)
    return tuple(name for name in needed if find_spec(name) is None)


def is_control_host(settings: Settings) -> bool:
    """Whether only control processes can run here: the libraries of GPU workers are not installed, and no
    checkpoint of the settings is here. Settings alone do not tell: control hosts often share those of the
    workers."""
    checkpoints = (settings.sdxl_model, settings.wan_model, settings.wan_vace_model, settings.qwen_model)
    return bool(missing_libraries(settings)) and not any(path and _exists(path) for path in checkpoints)


def _exists(path: Path) -> bool:
    """Whether something is there, also where this user may not look."""
    try:
        return path.exists()
    except OSError:
        return True


def require_libraries(settings: Settings) -> None:
    """Raise `SettingsError`, with the install command, where no GPU worker can run."""
    if missing := missing_libraries(settings):
        raise SettingsError(
            f"this installation has no libraries for models ({', '.join(missing)}): {INSTALL}", field="worker"
        )
