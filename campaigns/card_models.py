"""Models without weights that take the memory of large ones on an emulated card. Wan has parts.

They note what they do in `moves.jsonl` in the state directory: every load, every job, and the card's own
errors, with their times.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from PIL import Image

from ourvidz.jobs.job import ChatJob, ImageJob, VideoJob
from ourvidz.pipelines.base import GeneratedImages, GeneratedVideo, OnStep, TextDelta
from ourvidz.pipelines.stage_memory import AlwaysResident, StageMemory
from ourvidz.pipelines.texts.residency import ResidentTextModels, TextModel
from ourvidz.settings import Settings
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec
from ourvidz.wiring import control
from ourvidz.wiring.model_parts import Pipelines, Staged, Whole
from ourvidz.wiring.shared_device import SharedDevice

SIZES_MIB = {"sdxl": 10 * 1024, "wan": 30 * 1024, "qwen_instruct": 15 * 1024}
"""The weights of each model; what a job needs beside them is in `WORK_MIB`."""
WAN_PARTS_MIB = {"text_encoder": 11 * 1024, "transformer": 18 * 1024, "vae": 1024}
WAN_SHARES = {"text_encoder": 0.1, "transformer": 0.7, "vae": 0.2}
"""The parts of Wan, and how much of a job's time each works."""
WORK_MIB = 512
LOAD_S, WAKE_S = {"sdxl": 0.6, "wan": 1.5, "qwen_instruct": 0.8}, 0.2
JOB_S = {"sdxl": 0.1, "wan": 0.5, "qwen_instruct": 0.2}
MOVES = "moves.jsonl"


class Note:
    """Appends lines to the file of moves; each write is one line, so processes may share it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, what: str, model: str, **more: Any) -> None:
        """Note what happened to a model now."""
        line = json.dumps({"at": time.time(), "what": what, "model": model, "pid": os.getpid(), **more})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class NotedDevice(EmulatedDevice):
    """A card that notes its out-of-memory errors. Jobs need `WORK_MIB`, whatever was estimated."""

    def __init__(self, spec: EmulatedSpec, folder: Path, *, worker_id: str, note: Note) -> None:
        super().__init__(spec, folder, worker_id=worker_id)
        self._note = note

    def peak_mib(self) -> int | None:
        """What every job needs."""
        return WORK_MIB

    def allocate(self, name: str, mib: int) -> None:
        """Take memory, and note when there was not enough."""
        try:
            super().allocate(name, mib)
        except RuntimeError:
            self._note("out of memory", name, mib=mib)
            raise


class CardPipeline:
    """A model of a given size that takes time to load, to wake, and to run a job."""

    def __init__(self, name: str, note: Note) -> None:
        self.load_s: float | None = LOAD_S[name]
        self._name = name
        self._note = note
        self._place = "absent"

    def load(self) -> None:
        """Take the time of a load from disk, or of a wake from the host's memory."""
        if self._place != "device":
            time.sleep(LOAD_S[self._name] if self._place == "absent" else WAKE_S)
            self._note("load", self._name, cold=self._place == "absent")
            self._place = "device"

    def sleep(self) -> None:
        """Go to the host's memory."""
        self._place = "host"

    def unload(self) -> None:
        """Go away."""
        self._place = "absent"

    def info(self) -> dict[str, Any]:
        """Name and size."""
        loaded = self._place == "device"
        return {
            "name": self._name,
            "loaded": loaded,
            "memory_mib": SIZES_MIB[self._name],
            "device": "card",
            "inference_engine": "none",
        }

    def generate(self, job: Any, *, on_step: OnStep, **_: Any) -> Any:
        """A picture or a clip of one colour."""
        self._run(on_step)
        image = Image.new("RGB", (16, 16), "teal")
        if isinstance(job, VideoJob):
            return GeneratedVideo(frames=[image] * 2, fps=8, seed=job.seed, frames_generated=2, seconds=0.0)
        assert isinstance(job, ImageJob)
        return GeneratedImages(images=[image] * job.num_images, seeds=job.seeds, seconds=0.0)

    def new_decoder(self) -> CardDecoder:
        """A decoder of short texts."""
        return CardDecoder(self)

    def _run(self, on_step: OnStep) -> None:
        assert self._place == "device", f"{self._name} runs while it is {self._place}"
        self._note("job", self._name)
        on_step(0, 1)
        time.sleep(JOB_S[self._name])
        on_step(1, 1)


class StagedCardPipeline(CardPipeline):
    """Wan, whose parts are moved one by one. Its load is noted as that of its largest part."""

    def __init__(self, name: str, note: Note) -> None:
        super().__init__(name, note)
        self._memory: StageMemory = AlwaysResident()
        self._places = dict.fromkeys(WAN_PARTS_MIB, "absent")

    def share_memory(self, memory: StageMemory) -> None:
        """Use only parts that this memory has brought."""
        self._memory = memory

    def load(self) -> None:
        """Nothing: the stages bring what they use."""

    def load_part(self, part: str) -> None:
        """Take a part's share of the time of a load or a wake."""
        if self._places[part] != "device":
            seconds = LOAD_S[self._name] if self._places[part] == "absent" else WAKE_S
            time.sleep(seconds * WAN_PARTS_MIB[part] / SIZES_MIB[self._name])
            what = "load" if part == "transformer" else "load of a part"
            self._note(what, self._name, part=part, cold=self._places[part] == "absent")
            self._places[part] = "device"

    def sleep_part(self, part: str) -> None:
        """Go to the host's memory."""
        self._places[part] = "host"

    def unload_part(self, part: str) -> None:
        """Go away."""
        self._places[part] = "absent"

    def unload(self) -> None:
        """All parts go away."""
        self._places = dict.fromkeys(WAN_PARTS_MIB, "absent")

    def part_mib(self, part: str) -> float:
        """The size of a part."""
        return WAN_PARTS_MIB[part]

    def _run(self, on_step: OnStep) -> None:
        self._note("job", self._name)
        on_step(0, 1)
        for part, share in WAN_SHARES.items():
            with self._memory.in_use(part, finished=() if part == "text_encoder" else ("text_encoder",)):
                for _ in range(4):
                    assert self._places[part] == "device", f"{part} works while it is {self._places[part]}"
                    time.sleep(JOB_S[self._name] * share / 4)
        on_step(1, 1)


class CardDecoder:
    """Decodes any number of texts, each in one step."""

    def __init__(self, pipeline: CardPipeline) -> None:
        self._pipeline = pipeline
        self._keys: list[str] = []

    def add(self, key: str, job: ChatJob) -> int:  # noqa: ARG002
        """Add a text of one token."""
        self._keys.append(key)
        return 1

    def step(self) -> list[TextDelta]:
        """Finish all texts."""
        self._pipeline._run(lambda *_: None)
        return [TextDelta(key, "sea", 1, "stop") for key in self._keys]

    def remove(self, key: str) -> None:
        """Remove a text."""
        if key in self._keys:
            self._keys.remove(key)


class CardModels:
    """The models of one worker; implements `Models`."""

    def __init__(self, pipeline: CardPipeline, share: SharedDevice) -> None:
        self._pipeline = pipeline
        self.device_share = share

    def warm(self) -> None:
        """Load the model if there is memory for it."""
        self.device_share.warm()

    def reload(self) -> None:
        """Load the model again."""
        self.device_share.unload()
        self.device_share.warm()

    def images(self) -> CardPipeline:
        """The one pipeline."""
        return self._pipeline

    def videos(self) -> CardPipeline:
        """The one pipeline."""
        return self._pipeline

    def texts(self, model: str) -> Any:
        """The one pipeline, by the rules of language models."""
        models = {model: TextModel(self._pipeline, SIZES_MIB[model])}
        return ResidentTextModels(models, policy="always", free_mib=lambda: None).get(model)

    def flush(self) -> None:
        """Nothing is cached."""

    def info(self) -> dict[str, Any]:
        """The info of the pipeline by its name."""
        return {self._pipeline.info()["name"]: self._pipeline.info()}

    def memory(self) -> dict[str, Any]:
        """No figures."""
        return {}


def build(settings: Settings, family: str) -> CardModels:
    """Build the model of a family; `OURVIDZ_MODELS=campaigns.card_models:build` names this function."""
    name = "qwen_instruct" if family == "chat" else family
    note = Note(settings.state_dir / MOVES)
    device = NotedDevice(
        EmulatedSpec.parse(settings.emulated_gpu or ""),
        settings.state_dir / "emulated-gpus",
        worker_id=settings.worker_id(family),
        note=note,
    )
    pipeline: CardPipeline
    pipelines: Pipelines
    if family == "wan":
        pipeline = staged = StagedCardPipeline(name, note)
        pipelines = {name: Staged(staged, WAN_PARTS_MIB)}
    else:
        pipeline = CardPipeline(name, note)
        pipelines = {name: Whole(pipeline, SIZES_MIB[name])}
    share = SharedDevice(settings, family, control.current().ledger, device, pipelines)
    return CardModels(pipeline, share)
