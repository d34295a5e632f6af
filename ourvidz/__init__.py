"""OurVidz worker: AI images, videos and chat as Celery jobs."""

__version__ = "0.1.0"
