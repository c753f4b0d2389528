"""Pixels of files that nobody vouches for, decoded in one place."""

from diawork.data.readers.picture import Picture, read_image

__all__ = ["Picture", "read_image"]
