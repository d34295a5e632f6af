"""Campaigns: long tests of the whole system under faults and upgrades.

Each runs real processes, ends with a table, and exits with 1 if a promise was broken.
"""
