"""The Celery application. `celery -A ourvidz.app …` finds it here."""

from __future__ import annotations

from celery import Celery

app = Celery("ourvidz")
app.config_from_object("ourvidz.celery_settings")
