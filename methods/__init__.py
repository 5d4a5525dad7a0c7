"""Algorithms over a `Denoiser`, in pure torch: they read like the papers and know nothing of ComfyUI."""
