"""Runs: folders, one experiment, what runs share, methods, presets, notebooks."""
