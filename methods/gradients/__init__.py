"""Gradients through networks that somebody else loaded, within the memory there is."""
