"""The command line, and the processes it starts.

Owns the `ourvidz` command, the embedded Redis-protocol server, and the supervisor of one machine's processes.
Handles commands, processes, logs and exit statuses; jobs only over HTTP. Only `wan_generate.py` loads torch.
"""
