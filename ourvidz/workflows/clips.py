"""Storing what a Wan job made: a clip, or the one picture of an image job."""

from __future__ import annotations

from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.outcome import Asset
from ourvidz.media.thumbnails import clip_thumbnail
from ourvidz.media.video import encode_mp4
from ourvidz.pipelines.base import GeneratedImages, GeneratedVideo
from ourvidz.storage.store import Store
from ourvidz.workflows.assets import keep_file, keep_pictures
from ourvidz.workflows.services import Run
from ourvidz.workflows.signing import Credentials, File


def keep_clip(
    clip: GeneratedVideo, job: VideoJob, run: Run, store: Store, credentials: Credentials
) -> tuple[Asset, ...]:
    """Store the clip as what its job type makes, an MP4 or a PNG, with its thumbnail."""
    if job.row.output == "png":
        picture = GeneratedImages(
            images=clip.frames,
            seeds=[clip.seed],
            seconds=clip.seconds,
            asset_metadata=clip.asset_metadata,
        )
        return keep_pictures(picture, job, run, store, credentials)
    file = encode_mp4(clip.frames, fps=clip.fps, source=credentials.source)
    width, height = clip.frames[0].size
    known = clip.asset_metadata | {
        "seed": clip.seed,
        "width": width,
        "height": height,
        "fps": clip.fps,
        "frames": len(clip.frames),
        "frames_generated": clip.frames_generated,
        "duration_seconds": round(len(clip.frames) / clip.fps, 3),
    }

    def small() -> File:
        return credentials.on(clip_thumbnail(clip.frames, source=credentials.source), "image/webp")

    return (keep_file(credentials.on(file, "video/mp4"), "mp4", known, job, run, store, small=small),)
