"""The same no-op job on other queues, each set up as its documentation says."""
