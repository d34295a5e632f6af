"""One script for each peer, and the driver of the queues. They run in the peer's venv, with this folder as
path, so they import nothing of OurVidz."""
