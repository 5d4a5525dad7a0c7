"""The node that measures for benchmarks.gpu, over a tiny model; test_gpu_probe.py runs it in each checkout.

Usage, in a checkout and with its interpreter: python probe_checks.py PACK_FOLDER --cpu
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from model_checks import PACK, make  # noqa: E402

sys.path.insert(0, str(PACK / "benchmarks"))

from gpu_probe import GpuProbe  # noqa: E402


@torch.inference_mode()
def check() -> dict:
    patcher, vae, text = make()
    image = torch.rand(1, 48, 40, 3, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe.json"
        GpuProbe().probe(patcher, vae, text, image, str(out), 1, 0.0)
        return json.loads(out.read_text())


if __name__ == "__main__":
    print("RESULT " + json.dumps(check()))
