"""Celery's settings, under the name that `celery --config celeryconfig` looks for."""

from ourvidz.celery_settings import *  # noqa: F403
