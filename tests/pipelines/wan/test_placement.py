"""Device placement of components, on recording doubles: the machine may have no second device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ourvidz.pipelines.wan.placement import CPU, REQUIRED_COMPONENTS, Placement

GPU = torch.device("cuda", 0)


class RecordingModule:
    """Records the devices that it is moved to."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []

    def to(self, device: torch.device) -> None:
        self.devices.append(device)


@pytest.fixture
def pipe() -> SimpleNamespace:
    return SimpleNamespace(**{name: RecordingModule() for name in REQUIRED_COMPONENTS})


def current_devices(pipe: SimpleNamespace) -> dict[str, torch.device]:
    return {name: getattr(pipe, name).devices[-1] for name in REQUIRED_COMPONENTS}


def test_by_default_every_component_stays_on_the_device(pipe: SimpleNamespace) -> None:
    """Nothing is moved between jobs."""
    placement = Placement()
    placement.place(pipe, GPU)
    with placement.in_use(pipe, "transformer", GPU) as device:
        assert device == GPU
    assert current_devices(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, GPU)


def test_with_offloading_one_component_at_a_time_is_on_the_device(pipe: SimpleNamespace) -> None:
    """Also after an error."""
    placement = Placement(offload=True)
    placement.place(pipe, GPU)
    assert current_devices(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, CPU)
    with placement.in_use(pipe, "vae", GPU) as device:
        assert device == GPU
        assert current_devices(pipe) == {"text_encoder": CPU, "transformer": CPU, "vae": GPU}
    assert current_devices(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, CPU)
    with pytest.raises(RuntimeError, match="no room"), placement.in_use(pipe, "transformer", GPU):
        raise RuntimeError("no room")
    assert current_devices(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, CPU)


@pytest.mark.parametrize("offload", [True, False])
def test_a_text_encoder_on_the_cpu_is_never_moved_to_the_gpu(pipe: SimpleNamespace, offload: bool) -> None:
    """It is larger than the transformer and runs once per job."""
    placement = Placement(offload=offload, text_on_cpu=True)
    placement.place(pipe, GPU)
    with placement.in_use(pipe, "text_encoder", GPU) as device:
        assert device == CPU
    assert set(pipe.text_encoder.devices) == {CPU}
    assert current_devices(pipe)["transformer"] == (CPU if offload else GPU)
