"""The command line, and the processes it starts.

Owns: the `ourvidz` command, the embedded Redis-protocol server, the supervisor of one machine's processes.
Speaks: commands, processes, logs, exit codes; jobs only as HTTP. No torch, not even indirectly.
"""
