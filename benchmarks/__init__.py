"""Measurements side by side with peers, as ratios in one run."""

from ourvidz.settings import share_processors

share_processors()  # as every worker does, and before anything loads torch
