"""AntiPure (Yang et al., ICCV 2025): the objective, its terms, and the protection they make.

Patch-wise Frequency Guidance and Erroneous Timestep Guidance are in `guidance`, the unrolled purifier in `unrolled`,
what eyes notice in `perceptual`, the presets in `objective`.
"""
