"""What the UNet of a single file predicts, and its lowest signal-to-noise ratio, from the file's header.

Such files have no scheduler config. By convention of the programs that train and run them, empty tensors
named `v_pred` and `ztsnr` mark a UNet that predicts the velocity (https://arxiv.org/abs/2202.00512) and one
that was trained down to no signal at all (https://arxiv.org/abs/2305.08891); others write it to the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import Header

_PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
"""Prediction type of diffusers, by the value of `modelspec.prediction_type`."""
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Overrides of the scheduler config: sampling must start at the last timestep, which has no signal."""


def scheduler_overrides(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which the scheduler of this file differs from `config`, the scheduler config that it is
    loaded with. Raises `ModelLoadError` for a prediction or a combination that no scheduler supports."""
    overrides: dict[str, Any] = {}
    prediction = _prediction(header)
    # The metadata of many velocity models says epsilon, because a program wrote its default.
    if prediction == "v_prediction":
        overrides["prediction_type"] = prediction
    if _is_marked(header, "ztsnr") or _is_true(header.metadata.get("ss_zero_terminal_snr")):
        overrides |= ZERO_SNR
    combined = {**config, **overrides}
    if combined.get("rescale_betas_zero_snr") and combined.get("prediction_type", "epsilon") == "epsilon":
        raise ModelLoadError(
            "The file was trained down to a signal-to-noise ratio of zero, but is not marked as predicting"
            " the velocity (v_pred): set prediction_type in the scheduler config of OURVIDZ_SDXL_CONFIG."
        )
    return overrides


def _prediction(header: Header) -> str | None:
    """The prediction type of diffusers; None if the header does not say. Raises `ModelLoadError` for another
    one."""
    if _is_marked(header, "v_pred") or _is_true(header.metadata.get("ss_v_parameterization")):
        return "v_prediction"
    value = header.metadata.get("modelspec.prediction_type")
    if value is None:
        return None
    prediction = _PREDICTIONS.get(value.strip().lower())
    if prediction is None:
        raise ModelLoadError(f"The file predicts {value!r:.40}: only epsilon and v are supported.")
    return prediction


def _is_marked(header: Header, mark: str) -> bool:
    """Whether the file has this tensor, with or without the prefix that some programs put before all."""
    return mark in header.tensors or f"model.{mark}" in header.tensors


def _is_true(value: str | None) -> bool:
    return value is not None and value.strip().lower() in ("true", "1")
