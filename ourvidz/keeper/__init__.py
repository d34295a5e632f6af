"""The keeper: periodic duties that no job waits for, above all the sweep.

Owns: the list of duties, their timers, and the leases by which several keepers share them.
Handles: names, intervals and functions; what a duty does to jobs is in the packages below.
"""
