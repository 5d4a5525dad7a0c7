"""Checks of the published protections on a MODEL over ComfyUI's own classes; test_model_baselines.py runs it.

Usage, in a checkout and with its interpreter: python baseline_checks.py PACK_FOLDER --cpu
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from model_checks import make, opened, picture  # noqa: E402, I001  (it prepares ComfyUI and the pack)

import torch  # noqa: E402
from antipure.methods.baselines import BASELINES  # noqa: E402
from antipure.methods.baselines.simac import decoder_blocks, simac_terms  # noqa: E402
from antipure.methods.pictures import random_stream  # noqa: E402
from antipure.nodes.protect import Protect  # noqa: E402

STEPS = {"simac": 1}


def state_of(network) -> tuple:
    return [id(m) for m in network.modules()], [(id(p), p.requires_grad) for p in network.parameters()]


def check_presets() -> dict:
    """Largest change in levels under each preset of the node, and whether the network is what it was."""
    patcher, vae, text = make()
    network, result = patcher.model.diffusion_model, {}
    before, weights = state_of(network), {k: v.clone() for k, v in network.state_dict().items()}
    image = ((picture(48, 48) + 1) / 2).permute(0, 2, 3, 1)
    for name in BASELINES:
        denoiser = opened(patcher, vae, text)
        with torch.inference_mode():
            protected, _, _ = Protect().protect(image.clone(), denoiser, name, 4.0, STEPS.get(name, 7), 0)
        same = state_of(network) == before
        same = same and all(torch.equal(v, weights[k]) for k, v in network.state_dict().items())
        result[name] = {"change": float((protected - image).abs().max() * 255), "same": same}
    return result


def check_simac_gradient() -> dict:
    """The feature term reaches the picture through ComfyUI's network: another gradient than without it."""
    patcher, vae, text = make()
    denoiser, found = opened(patcher, vae, text), {}
    with denoiser.session(), torch.enable_grad():
        blocks = decoder_blocks(denoiser.network)
        for count in (len(blocks), 1):
            x = picture(64, 64).clone().requires_grad_()
            arguments = torch.tensor([300]), x, picture(64, 64).flip(-1), [random_stream(0)]
            terms = simac_terms(denoiser, blocks[:count], *arguments)
            found[count] = torch.autograd.grad(terms.sum(), x)[0]
    three, one = found[len(blocks)], found[1]
    return {"blocks": len(blocks), "differs": float((three - one).norm() / three.norm())}


if __name__ == "__main__":
    checks = {name[6:]: run for name, run in list(globals().items()) if name.startswith("check_")}
    print("RESULT " + json.dumps({name: run() for name, run in checks.items()}))
