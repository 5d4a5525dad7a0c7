"""Face-editing generators behind one small interface, for the defences and the patches that are tried on them."""

from .generator import Generator, ModuleGenerator, load_exported
from .loading import load_generator

__all__ = ["Generator", "ModuleGenerator", "load_exported", "load_generator"]
