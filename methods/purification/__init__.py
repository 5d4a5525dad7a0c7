"""Purifiers: DDPM's ancestral sampling, DiffPure, GrIDPure, the VAE round trip, and plain transforms."""
