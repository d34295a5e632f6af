"""How fast the models of a shared GPU sleep and wake, and whether their memory is as it was reserved.

    python -m benchmarks.card [--gpu] [--rounds 5] [--families sdxl,qwen,wan] [--json]

With `--gpu` the weights are random and have the real sizes: SDXL 1.0, Wan 1.3B with its text encoder, and
Qwen2.5-7B. Needs 40 GB of disk and 45 GB of host memory for one family at a time. Without it, or without a
GPU, the same steps run on small models, which says nothing about a GPU.

Each row: the time to load the weights from disk, to move them to the host's memory (`sleep`) and back
(`wake`, the median), against the target; what stays on the GPU while the model sleeps; and the working memory
of one job beside the weights (`peak`), against what is reserved for it before one was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers

from benchmarks import gpu, sdxl_gpu, wan_gpu
from ourvidz.cli.console import print_note
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.vram.footprints import UNKNOWN_SHARE
from ourvidz.vram.plan import JOBS

TARGETS_S = {"sdxl": 0.5, "qwen": 1.0, "wan": 1.5}
"""The longest time to wake from pinned memory."""
MIB = 1 << 20


class Pipeline(Protocol):
    """What is measured of a pipeline."""

    load_s: float | None

    def load(self) -> None:
        """Bring the weights onto the device."""

    def sleep(self) -> None:
        """Move them to the host's memory."""

    def unload(self) -> None:
        """Free them."""

    def info(self) -> dict[str, Any]:
        """`memory_mib`: the size of the weights."""


@dataclass(frozen=True, slots=True)
class QwenSizes:
    """The sizes of a Qwen checkpoint; the defaults are those of Qwen2.5-7B."""

    vocabulary: int = 152_064
    width: int = 3584
    layers: int = 28
    heads: int = 28
    key_heads: int = 4
    feed_forward: int = 18_944


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of all models, of which the text encoders have so many layers; the defaults are the real
    ones."""

    sdxl: sdxl_gpu.Sizes = sdxl_gpu.FULL
    sdxl_text_layers: tuple[int, int] = (12, 32)
    wan: wan_gpu.Sizes = wan_gpu.FULL
    wan_text_layers: int = 24
    wan_vocabulary: int = 256_384
    qwen: QwenSizes = QwenSizes()
    image_px: int = 1024
    clip_px: tuple[int, int] = (480, 832)
    frames: int = 81
    tokens: int = 64


FULL = Sizes()
SMALL = Sizes(
    sdxl=sdxl_gpu.Sizes((32, 64, 64), (1, 1, 1), (1, 2, 2), (32, 64), (32, 32, 32, 32)),
    sdxl_text_layers=(2, 2),
    wan=wan_gpu.Sizes(heads=2, head_width=16, layers=2, feed_forward=64, text_width=64, vae_width=8),
    wan_text_layers=2,
    wan_vocabulary=2048,
    qwen=QwenSizes(vocabulary=2603, width=64, layers=2, heads=2, key_heads=1, feed_forward=128),
    image_px=64,
    clip_px=(64, 64),
    frames=5,
    tokens=4,
)


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one family (MiB and seconds). None is what only a GPU can tell."""

    family: str
    device: str
    weights_mib: int
    load_s: float
    sleep_s: float
    wake_s: float
    target_s: float
    left_mib: int | None
    peak_mib: int | None
    reserved_mib: int
    planned_mib: int | None

    @property
    def verdict(self) -> str:
        """Whether the targets are met."""
        if self.peak_mib is None or self.planned_mib is None:
            return "not measured on a GPU"
        slow = self.wake_s > self.target_s
        large = self.peak_mib > self.planned_mib
        return ", ".join(["slow"] * slow + ["more memory than planned"] * large) or "kept"


def measure(sizes: Sizes, *, families: list[str], rounds: int) -> Iterator[Row]:
    """Measure one family after the other."""
    for family in families:
        with tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder:
            yield measure_family(family, Path(folder), sizes, rounds)


def measure_family(family: str, folder: Path, sizes: Sizes, rounds: int) -> Row:
    """Write the checkpoint of a family, load it, run a job, and let it sleep and wake."""
    pipeline, run = BUILDERS[family](folder, sizes)
    pipeline.load()
    held_mib = _allocated_mib()
    gpu.reset_peak()
    run()
    peak_gib = gpu.peak_gib()
    sleeps, wakes, left_mib = [], [], None
    for _ in range(rounds):
        started = gpu.now()
        pipeline.sleep()
        slept = gpu.now()
        left_mib = _allocated_mib()
        pipeline.load()
        sleeps.append(slept - started)
        wakes.append(gpu.now() - slept)
    weights_mib = int(pipeline.info()["memory_mib"])
    measured = peak_gib is not None and held_mib is not None
    row = Row(
        family=family,
        device=torch.cuda.get_device_name() if measured else "cpu",
        weights_mib=weights_mib,
        load_s=pipeline.load_s or 0.0,
        sleep_s=round(statistics.median(sleeps), 3),
        wake_s=round(statistics.median(wakes), 3),
        target_s=TARGETS_S[family],
        left_mib=left_mib,
        peak_mib=round(peak_gib * 1024) - held_mib if peak_gib is not None and held_mib is not None else None,
        reserved_mib=max(1, round(weights_mib * UNKNOWN_SHARE)),
        planned_mib=_planned_mib(family) if sizes == FULL else None,
    )
    pipeline.unload()
    return row


def _sdxl(folder: Path, sizes: Sizes) -> tuple[Pipeline, Callable[[], object]]:
    sdxl_gpu.write_checkpoint(folder, sizes.sdxl)
    kinds = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
    for name, kind, layers in zip(
        ("text_encoder", "text_encoder_2"), kinds, sizes.sdxl_text_layers, strict=True
    ):
        config = transformers.CLIPTextConfig.from_pretrained(folder / name)
        config.num_hidden_layers = layers
        _replace(folder / name, lambda kind=kind, config=config: kind(config), torch.float16)  # type: ignore[misc]
    job = sdxl_gpu.JOB.model_copy(update={"steps": 2, "width": sizes.image_px, "height": sizes.image_px})
    sdxl = SDXLPipeline(Checkpoint(folder, "folder"), options=SDXLOptions(previews=False))
    return sdxl, lambda: sdxl.generate(job, on_step=lambda *_: None)


def _wan(folder: Path, sizes: Sizes) -> tuple[Pipeline, Callable[[], object]]:
    wan_gpu.write_checkpoint(folder, sizes.wan)
    config = transformers.UMT5Config.from_pretrained(folder / "text_encoder")
    config.num_layers, config.vocab_size = sizes.wan_text_layers, sizes.wan_vocabulary
    _replace(folder / "text_encoder", lambda: transformers.UMT5EncoderModel(config), torch.bfloat16)
    width, height = sizes.clip_px
    job = wan_gpu.JOB.model_copy(
        update={"steps": 2, "width": width, "height": height, "frames": sizes.frames}
    )
    wan = WanPipeline(Checkpoint(folder, "folder"), options=WanOptions(previews=False))
    return wan, lambda: wan.generate(job, on_step=lambda *_: None)


def _qwen(folder: Path, sizes: Sizes) -> tuple[Pipeline, Callable[[], object]]:
    shutil.copytree(
        PACKAGED / "tiny-qwen" / "instruct", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("SHA*")
    )
    config = transformers.Qwen2Config.from_pretrained(folder)
    qwen = sizes.qwen
    config.update(
        {
            "vocab_size": qwen.vocabulary,
            "hidden_size": qwen.width,
            "num_hidden_layers": qwen.layers,
            "num_attention_heads": qwen.heads,
            "num_key_value_heads": qwen.key_heads,
            "intermediate_size": qwen.feed_forward,
            "layer_types": ["full_attention"] * qwen.layers,
            "tie_word_embeddings": False,
        }
    )
    _replace(folder, lambda: transformers.Qwen2ForCausalLM(config), torch.bfloat16)
    pipeline = QwenPipeline(Checkpoint(folder, "folder"), "instruct")

    def run() -> None:
        decoder = pipeline.new_decoder()
        for number in range(8):
            decoder.add(str(number), _chat_job(sizes.tokens))
        left = 8
        while left:
            for delta in decoder.step():
                if delta.finish_reason is not None:
                    decoder.remove(delta.key)
                    left -= 1

    return pipeline, run


def _chat_job(tokens: int) -> ChatJob:
    return ChatJob(
        id="bench",
        type="chat_conversation",
        user_id="bench",
        expected_time=10,
        messages=(Message(role="user", content="Name a colour of the sea."),),
        max_tokens=tokens,
        seed=7,
    )


BUILDERS: dict[str, Callable[[Path, Sizes], tuple[Pipeline, Callable[[], object]]]] = {
    "sdxl": _sdxl,
    "qwen": _qwen,
    "wan": _wan,
}
"""For each family, what writes its checkpoint and returns its pipeline and one job."""


def _replace(folder: Path, build: Callable[[], Any], dtype: torch.dtype) -> None:
    """Replace the weights in `folder` by random ones of a model that `build` returns. It is built without
    memory first: the usual initialisation of a large model takes minutes."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    with torch.device("meta"):
        model = build().to(dtype)
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    model.save_pretrained(folder)


def _allocated_mib() -> int | None:
    return torch.cuda.memory_allocated() // MIB if torch.cuda.is_available() else None


def _planned_mib(family: str) -> int:
    """What `ourvidz models plan` takes for the working memory of this job."""
    return JOBS["qwen_instruct" if family == "qwen" else family][0].whole_mib


def format_row(row: Row) -> str:
    """One row as a line of text."""
    memory = "" if row.peak_mib is None else f"   peak {row.peak_mib} of {row.planned_mib} MiB planned"
    left = "" if row.left_mib is None else f"   {row.left_mib} MiB left asleep"
    return (
        f"{row.family:5} {row.weights_mib:6} MiB   load {row.load_s:6.2f} s   sleep {row.sleep_s:6.3f} s   "
        f"wake {row.wake_s:6.3f} s (target {row.target_s:g})   {row.reserved_mib} MiB reserved"
        f"{memory}{left}   {row.verdict}"
    )


def main() -> int:
    """Measure, and print a line for each family or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="real sizes, on a GPU")
    parser.add_argument("--rounds", type=int, default=5, help="how often each model sleeps and wakes")
    parser.add_argument("--families", default=",".join(BUILDERS), help="which, with commas")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    families = arguments.families.split(",")
    if unknown := set(families) - BUILDERS.keys():
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    full = arguments.gpu and torch.cuda.is_available()
    if not full:
        print_note("small models: not measured on a GPU")
    for row in measure(FULL if full else SMALL, families=families, rounds=arguments.rounds):
        print(
            json.dumps(asdict(row) | {"verdict": row.verdict}) if arguments.json else format_row(row),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
