from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ourvidz.pipelines.wan.placement import CPU, REQUIRED_COMPONENTS, Placement

GPU = torch.device("cuda", 0)


class Part:
    """Knows where it was sent: this machine may have no second device to go to."""

    def __init__(self) -> None:
        self.seen: list[torch.device] = []

    def to(self, device: torch.device) -> None:
        self.seen.append(device)


@pytest.fixture
def pipe() -> SimpleNamespace:
    return SimpleNamespace(**{name: Part() for name in REQUIRED_COMPONENTS})


def where(pipe: SimpleNamespace) -> dict[str, torch.device]:
    return {name: getattr(pipe, name).seen[-1] for name in REQUIRED_COMPONENTS}


def test_nothing_set_keeps_every_part_on_the_device(pipe: SimpleNamespace) -> None:
    """A warm worker moves nothing between two jobs."""
    placement = Placement()
    placement.place(pipe, GPU)
    with placement.in_use(pipe, "transformer", GPU) as device:
        assert device == GPU
    assert where(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, GPU)


def test_offloading_brings_one_part_at_a_time(pipe: SimpleNamespace) -> None:
    """The device needs room for the largest part alone, also after one that failed."""
    placement = Placement(offload=True)
    placement.place(pipe, GPU)
    assert where(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, CPU)
    with placement.in_use(pipe, "vae", GPU) as device:
        assert device == GPU
        assert where(pipe) == {"text_encoder": CPU, "transformer": CPU, "vae": GPU}
    assert where(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, CPU)
    with pytest.raises(RuntimeError, match="no room"), placement.in_use(pipe, "transformer", GPU):
        raise RuntimeError("no room")
    assert where(pipe) == dict.fromkeys(REQUIRED_COMPONENTS, CPU)


@pytest.mark.parametrize("offload", [True, False])
def test_a_text_encoder_on_the_cpu_never_leaves_it(pipe: SimpleNamespace, offload: bool) -> None:
    """It takes more room than the transformer and works once a job."""
    placement = Placement(offload=offload, text_on_cpu=True)
    placement.place(pipe, GPU)
    with placement.in_use(pipe, "text_encoder", GPU) as device:
        assert device == CPU
    assert set(pipe.text_encoder.seen) == {CPU}
    assert where(pipe)["transformer"] == (CPU if offload else GPU)
