"""The readers of files that nobody vouches for: a room for each kind of data set, and one for a single image."""

from diawork.data.readers.content import Content, Part, read_content
from diawork.data.readers.picture import Picture, read_image

__all__ = ["Content", "Part", "Picture", "read_content", "read_image"]
