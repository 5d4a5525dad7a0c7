"""Checks of Load Demo Model over ComfyUI's own classes; test_demo_model.py runs it in each checkout.

Usage, in a checkout and with its interpreter: python demo_checks.py PACK_FOLDER --cpu
Runs the node and what takes its outputs, and prints one JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, ".")
PACK = Path(sys.argv.pop(1))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402, F401  # as in a server: the pack sees that it runs inside
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("antipure", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
antipure = importlib.util.module_from_spec(spec)
sys.modules["antipure"] = antipure
spec.loader.exec_module(antipure)

logging.disable(logging.WARNING)
torch.set_num_threads(1)
nodes = antipure.NODE_CLASS_MAPPINGS


def run(node_id: str, **inputs) -> tuple:
    node = nodes[node_id]()
    return getattr(node, node.FUNCTION)(**inputs)


def sampled(model, positive, negative, seed: int) -> torch.Tensor:
    latent = torch.zeros(1, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model, noise, 6, 3.0, "euler", "simple", positive, negative, latent, denoise=1.0, seed=seed, disable_pbar=True
    )


def independent(x: torch.Tensor, sigma: torch.Tensor, chosen: dict) -> torch.Tensor:
    """The same denoised latent by our own transformer, and the tables of the prompt as they were trained."""
    sys.path.insert(0, str(PACK))
    from safetensors.torch import load_file

    from methods.diffusion.mmdit import MMDiT

    folder = PACK / "bundled" / "demo"
    network = MMDiT().eval()
    shards = [load_file(path) for path in sorted(folder.glob("model-*.safetensors"))]
    network.load_state_dict({k: v.float() for shard in shards for k, v in shard.items()})
    tables = {k: v.float() for k, v in load_file(folder / "conditions.safetensors").items()}
    # The state dict is sorted by name, the tables are not: their order is that of the training.
    order = ["who", "style", "hair colour", "haircut", "beard", "glasses", "hat", "age", "skin", "expression"]
    rows = {name: chosen.get(name, 0) for name in order}
    tokens = torch.stack([tables[f"context.{name}"][row] for name, row in rows.items()])
    pooled = sum(tables[f"pooled.{name}"][row] for name, row in rows.items()) / len(rows) ** 0.5
    context = torch.cat([tokens, tables["registers"]])
    return x - sigma.view(-1, 1, 1, 1) * network(x, sigma, context[None], pooled[None])


@torch.inference_mode()
def main() -> dict:
    model, vae, positive, negative, portraits, classes = run(
        "AntiPureLoadDemoModel", person="person 3", style="ink", glasses="yes"
    )
    found: dict = {"kind": type(model.model).__name__, "channels": vae.latent_channels, "classes": classes}
    found["portraits"] = list(portraits.shape)

    latent = vae.encode(portraits)
    back = vae.decode(latent)
    found["latent"] = list(latent.shape)
    found["round trip"] = float(-10 * (back - portraits).square().mean().log10())

    comfy.model_management.load_models_gpu([model])
    generator = torch.Generator().manual_seed(1)
    x, sigma = torch.randn(1, 16, 16, 16, generator=generator), torch.tensor([0.7])
    context, pooled = positive[0][0], positive[0][1]["pooled_output"]
    theirs = model.model.apply_model(x, sigma, c_crossattn=context, y=pooled).float()
    ours = independent(x, sigma, {"who": 4, "style": 3, "glasses": 2})
    found["denoised"] = float((theirs - ours).abs().max() / ours.std())

    one, same = sampled(model, positive, negative, 1), sampled(model, positive, negative, 1)
    other = sampled(model, negative, negative, 1)
    found["sampled"] = {
        "finite": bool(one.isfinite().all()), "repeats": torch.equal(one, same), "told": not torch.equal(one, other),
    }  # fmt: skip

    (denoiser,) = run("AntiPureDenoiserFromModel", model=model, vae=vae, conditioning=negative)
    moved, *_ = run(
        "AntiPureProtect", image=portraits[:1], denoiser=denoiser, preset="strong", levels=8.0, steps=2, seed=0
    )
    found["protected"] = float(((moved - portraits[:1]).abs().max() * 255).round())
    (targets,) = run("AntiPureVaeTargets", vae=vae)
    moved, *_ = run(
        "AntiPureProtect", image=portraits[:1], denoiser=targets, preset="photoguard", levels=8.0, steps=2, seed=0
    )
    found["vae protected"] = float(((moved - portraits[:1]).abs().max() * 255).round())
    pure, *_ = run(
        "AntiPureDiffusionPurify", image=portraits[:1], denoiser=denoiser, method="diffpure", timestep=100,
        iterations=1, gamma=0.1, seed=0,
    )  # fmt: skip
    found["purified"] = list(pure.shape)
    patch, *_ = run(
        "AntiPureTrainModelPatch", denoiser=denoiser, pictures=portraits, warning_text="FAKE", steps=2, batch=1, rank=4,
        gate="scalar", learning_rate=0.01, seed=0,
    )  # fmt: skip
    _, patched = run("AntiPureLoraPatchApply", patch=patch, strength=1.0, model=model)
    _, off = run("AntiPureLoraPatchApply", patch=patch, strength=0.0, model=model)
    found["patched"] = {
        "acts": not torch.equal(one, sampled(patched, positive, negative, 1)),
        "nothing at strength 0": torch.equal(one, sampled(off, positive, negative, 1)),
    }
    after = sampled(model, positive, negative, 1)
    found["weights as before"] = torch.equal(one, after)
    copied = getattr(model, "cached_patcher_init", None)
    again = copied[0](*copied[1])
    found["loaded anew"] = type(again).__name__ == type(model).__name__ and again is not model
    return found


print("RESULT " + json.dumps(main()))
