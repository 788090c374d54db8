"""Audio that lies inside a larger file: where it is, as a path with a fragment, and reading it from there."""

from speech.containers.location import Cell, Span, container_of, locate
from speech.containers.reading import open_bytes

__all__ = ["Cell", "Span", "container_of", "locate", "open_bytes"]
