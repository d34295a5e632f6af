"""How many GPUs one control host feeds: its processes against emulated workers whose jobs take a second."""
