"""Measured cost, in ratios of one run."""
