"""The Wan class set with random weights from a fixed seed.

The same classes and folder layout as a real checkpoint: a causal VAE that scales by 8 in space and 4 in time,
a UMT5 text encoder, a video transformer.
"""

from __future__ import annotations

import string
from pathlib import Path

import diffusers
import torch
import transformers

from ourvidz.pipelines import devices

SEED = 20250225
LATENT_CHANNELS = 16
TEXT_WIDTH = 32
LETTERS = string.ascii_letters + string.digits + string.punctuation
SPECIAL = ("<pad>", "</s>", "<unk>")
"""In T5's order: their ids are 0, 1 and 2."""


def build(folder: Path) -> None:
    """Write the checkpoint to `folder` in the diffusers layout. Every call writes equal files and leaves
    torch's random state unchanged."""
    devices.quiet_libraries()
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        pipeline = diffusers.WanPipeline(
            tokenizer=tokenizer,
            text_encoder=transformers.UMT5EncoderModel(_text_config(len(tokenizer))),
            vae=_vae(),
            scheduler=_scheduler(),
            transformer=_transformer(),
        )
    pipeline.save_pretrained(folder, safe_serialization=True)


def _tokenizer() -> transformers.T5Tokenizer:
    """One token per character; the mark before each word is a token too."""
    pieces = [(name, 0.0) for name in SPECIAL] + [(letter, -2.0) for letter in ("▁", *LETTERS)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def _text_config(vocabulary: int) -> transformers.UMT5Config:
    """`initializer_factor` is larger than T5's 1.0: at this depth the prompt would hardly affect the clip."""
    return transformers.UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=2 * TEXT_WIDTH,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        initializer_factor=3.0,
        pad_token_id=0,
        eos_token_id=1,
    )


def _vae() -> diffusers.AutoencoderKLWan:
    """Halves the edges three times and the number of frames twice, as the real VAE."""
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        # About the statistics of the random encoder; not 0 and 1, so that a missing normalization shows.
        latents_mean=[-0.05] * LATENT_CHANNELS,
        latents_std=[0.12] * LATENT_CHANNELS,
    )


def _transformer() -> diffusers.WanTransformer3DModel:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=256,
    )


def _scheduler() -> diffusers.UniPCMultistepScheduler:
    """The shift of the 480p conversion; every job sets its own."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
