"""Denoiser from Model under dynamic VRAM, over ComfyUI's own loaders (see dynamic_checks.py).

test_pretended_device.py has the paging.
"""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(("flag", "vae"), [("--fp32-vae", "torch.float32"), ("--bf16-vae", "torch.bfloat16")])
def test_gradient_is_the_one_without_dynamic_vram(run_in_checkout, random_checkpoint, flag, vae):
    output = run_in_checkout("dynamic_checks.py", str(random_checkpoint("sd15-small")), flag)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    found = json.loads(line.removeprefix("RESULT "))
    if found is None:
        pytest.skip("this version has no dynamic VRAM")
    assert found.pop("error") < 1e-3
    network_dtypes, vae_dtypes = found.pop("dtypes")
    assert "torch.float16" not in network_dtypes
    assert vae_dtypes == [vae]
    assert all(found.values()), found
