"""Outgoing HTTP requests.

Owns: requests that each have one deadline, and their connections; which hosts and addresses may be called;
downloads from untrusted URLs; server-sent event streams.
Handles: URLs, addresses, headers, bytes, status codes, seconds. No jobs, no payloads, no files.
"""
