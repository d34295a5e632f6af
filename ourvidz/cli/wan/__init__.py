"""`wan_generate.py`: the command line of the Wan release, run on this machine without a queue.

Owns the options, tasks and exit statuses of the script; checks them before torch is loaded.
Handles one request at a time, with files on the local disk. Generation itself is the workflow of the queue.
"""
