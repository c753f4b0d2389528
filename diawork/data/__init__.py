"""Data sets: facts, readers, splits, the phantom, checks, changes made on purpose."""
