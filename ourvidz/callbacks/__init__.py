"""Callbacks: builds, signs and delivers the events of jobs.

Owns the payload, its signatures, the list of allowed receivers, the retry schedule, and delivery.
Handles outbox events, bytes, headers, status codes and due times; knows no images, models or Celery.
"""
