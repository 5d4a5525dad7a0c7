"""LoRA Patching (IEEE SPL 2026): gated low-rank updates of a frozen network, their training, and the defence they test.

The gated layer is in `layer`, its factors and gates in `low_rank`, the proactive defence it is measured against in
`disrupting`.
"""
