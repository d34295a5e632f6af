"""Autoscaling: how many workers a queue should have.

Owns the policy that turns the remaining work of a queue into a number of workers, reading that work from the
ledger, and a simulation of a fleet that follows the policy.
Handles queues, seconds and numbers of workers; starts and stops nothing.
"""
