"""The same no-op task on other queues, each configured as its documentation recommends."""
