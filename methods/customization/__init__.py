"""Customization as whoever misuses pictures would do it: a LoRA on a denoiser, and what it learned."""
