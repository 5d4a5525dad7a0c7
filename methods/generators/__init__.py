"""Face-editing generators behind one small interface, for the defences and the patches that are tried on them."""

from .generator import Generator
from .loading import load_generator

__all__ = ["Generator", "load_generator"]
