"""Limits of callers: how much a key, a user and an address may ask for.

Owns: the cost of a job, which allowances a request takes from, allowances that a process draws in advance,
and the header fields that report them. The ledger keeps the allowances and holds submissions to them.
Handles: jobs, charges and standings. It knows no HTTP requests and no keys.
"""
