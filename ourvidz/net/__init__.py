"""Speaking HTTP to the outside.

Owns: how an outgoing request is made: one try, no redirects, no proxies of the environment, one deadline.
Speaks: addresses, headers, bytes, status codes, seconds. No jobs, no payloads, no files.
"""
