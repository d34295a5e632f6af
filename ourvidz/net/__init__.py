"""Outgoing HTTP requests.

Owns: one request per connection under one deadline; which hosts and addresses may be called; downloads from
untrusted URLs; server-sent event streams.
Handles: URLs, addresses, headers, bytes, status codes, seconds. No jobs, no payloads, no files.
"""
