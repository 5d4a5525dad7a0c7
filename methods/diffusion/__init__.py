"""Diffusion models behind one interface: `denoiser`; what makes one (`pixel`, `checkpoints`, `adm`), and what is done
with any (`loss`, `ddim`, `batching`).
"""
