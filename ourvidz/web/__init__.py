"""The HTTP shim: validates a request, hands it to the dispatcher, shows what the ledger knows.

Owns: routes, keys and scopes, body limits, problem documents, the audit log, the local callback receiver.
Speaks: requests, status codes, JSON documents, server-sent events. No models, no Redis, no Celery.
"""
