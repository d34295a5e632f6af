"""Speaking HTTP to the outside.

Owns: how an outgoing request is made: one try, no proxies of the environment, one deadline; which hosts and
addresses may be called; reading a stranger's URL; reading an answer while it is being written.
Speaks: addresses, headers, bytes, status codes, seconds. No jobs, no payloads, no files.
"""
