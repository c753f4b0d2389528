"""Pixels of files that nobody vouches for, decoded in one place."""
