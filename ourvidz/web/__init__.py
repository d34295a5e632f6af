"""HTTP service (the shim): validates requests, submits jobs, and serves what the ledger records.

Owns routes, API keys and their scopes, body limits, problem documents, the audit log, the callback receiver.
Handles requests, status codes, JSON documents and server-sent events; knows no models, Redis or Celery.
"""
