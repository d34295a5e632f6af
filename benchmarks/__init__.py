"""Benchmarks. Each measures OurVidz and its peers in one run, so that the ratios hold on any machine."""

from ourvidz.settings import share_processors

share_processors()  # as every worker does; must run before torch is imported
