"""How the costs of the job system grow: with queued jobs, with finished jobs, with followers of a shim."""
