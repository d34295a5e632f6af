"""Telling the caller how a job goes.

Owns: the payload, its signatures, who may be told and with which secrets, when to try again, delivery.
Speaks: outbox rows, bytes, headers, status codes, attempts, due times. No pictures, no models, no Celery.
"""
