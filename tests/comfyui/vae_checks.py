"""Checks of nodes/latent_autoencoder.py over ComfyUI's own VAEs; test_vaes.py runs it in each checkout.

Usage, in a checkout and with its interpreter: python vae_checks.py PACK_FOLDER --cpu
Builds small random VAEs in inference mode, as loader nodes do, measures with them, and prints one JSON object.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, ".")
PACK = Path(sys.argv.pop(1))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402, F401  # as in a server: the pack sees that it runs inside
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("antipure", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
antipure = importlib.util.module_from_spec(spec)
sys.modules["antipure"] = antipure
spec.loader.exec_module(antipure)

from antipure.methods.diffusion.taesd import tiny_autoencoder  # noqa: E402
from antipure.methods.errors import AntiPureError  # noqa: E402
from antipure.nodes import host  # noqa: E402
from antipure.nodes.latent_autoencoder import HostAutoencoder  # noqa: E402

logging.disable(logging.WARNING)
torch.set_num_threads(1)
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
SCALES = {4: (0.18215, 0.0), 16: (1.5305, 0.0609)}  # what Load VAE gives TAESD's files beside their weights


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim > 1:
            p.data.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
        elif not name.startswith("vae_"):
            p.data.copy_(0.1 * torch.randn(p.shape, generator=generator) + name.endswith("weight"))


@torch.inference_mode()
def kl(channels: int):
    """As of SD 1.5 and SDXL, or with 16 channels and no quantisation layers of SD 3."""
    if channels == 4:
        vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": VAE, "embed_dim": 4}})
    else:
        vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": {**VAE, "z_channels": 16}, "embed_dim": 16}})
        vae.latent_channels = 16
    randomise(vae.first_stage_model, channels)
    return vae


def halves(channels: int, pooled: bool = False) -> tuple[dict, dict]:
    from antipure.methods.diffusion.taesd import TinyAutoencoder

    network = TinyAutoencoder(channels, 64, pooled).requires_grad_(False)
    randomise(network, channels)
    return network.encoder.state_dict(), network.decoder.state_dict()


@torch.inference_mode()
def taesd(encoder: dict, decoder: dict, channels: int):
    """As Load VAE reads taesd, taesdxl, taesd3, taef1 and taef2."""
    sd = {f"taesd_encoder.{key}": value.clone() for key, value in encoder.items()}
    sd |= {f"taesd_decoder.{key}": value.clone() for key, value in decoder.items()}
    if channels == 32:
        return comfy.sd.VAE(sd=sd, metadata={"tae_latent_channels": 128})
    sd["vae_scale"], sd["vae_shift"] = map(torch.tensor, SCALES[channels])
    return comfy.sd.VAE(sd=sd)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(5)) * 1.6 - 0.8


def tensors(module: torch.nn.Module) -> list:
    return [*module.parameters(), *module.buffers()]


def opened(vae) -> HostAutoencoder:
    autoencoder = HostAutoencoder(vae)
    host.ready(autoencoder)
    return autoencoder


def measured(vae, reference=None) -> dict:
    """Ours against the host's own encode and decode, its gradient, and what is left of the weights after it.

    reference: another reading of the network in float64, whose gradient is compared; None: finite differences are.
    """
    before = tensors(vae.first_stage_model)
    x = pixels(32, 48)
    with torch.inference_mode():
        image = ((x + 1) / 2).movedim(1, -1)
        latent = vae.encode(image)
        back = vae.decode(latent)
    autoencoder = opened(vae)
    result = {}
    with autoencoder.session():
        result |= {"channels": autoencoder.channels, "multiple": autoencoder.multiple}
        with torch.no_grad():
            result["encode"] = error(autoencoder.encode(x), latent)
            # The host clamps what it gives.
            decoded = autoencoder.decode(latent.clone())
            result["decode"] = error((decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1), back)
        leaf = x[:1].clone().requires_grad_()
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(6))
        weights = torch.randn(latent[:1].shape, generator=torch.Generator().manual_seed(7))
        (autoencoder.encode(leaf) * weights).sum().backward()
        network, dtype = autoencoder.vae_patcher.model, next(autoencoder.vae_patcher.model.parameters()).dtype
        result["dtype"] = str(dtype)
        if reference is None:
            h = 3e-3
            with torch.no_grad():
                up, down = ((autoencoder.encode(x[:1] + s * h * direction) * weights).sum().double() for s in (1, -1))
            slope = (leaf.grad.double() * direction).sum()
            result["gradient"] = float(abs((up - down) / (2 * h) - slope) / slope.abs())
        else:
            other = x[:1].double().requires_grad_()
            (reference(other) * weights).sum().backward()
            result["gradient"] = error(leaf.grad, other.grad)
        result["no_weight_gradients"] = all(p.grad is None for p in network.parameters())
        result["positive bytes"] = autoencoder.bytes_per_pixel() > 0
    after = tensors(vae.first_stage_model)
    result["returned"] = len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))
    with torch.inference_mode():
        result["host as before"] = bool(torch.equal(latent, vae.encode(image)))
    return result


def check_vaes() -> dict:
    result = {name: measured(kl(channels)) for name, channels in (("sd15", 4), ("sd3", 16))}
    for channels in (4, 16):
        states = halves(channels)
        with torch.inference_mode(False):
            ours = tiny_autoencoder(*states).double()
        scale, shift = SCALES[channels]
        vae = taesd(*states, channels)
        result[f"taesd{channels}"] = measured(vae, lambda x, ours=ours, a=scale, b=shift: ours.moments(x)[0] / a + b)
    from comfy.taesd import taesd as theirs

    if "use_gn" in inspect.signature(theirs.Encoder.__init__).parameters:  # 0.33 on
        states = halves(32, pooled=True)
        ours = tiny_autoencoder(*states).double()
        vae = taesd(*states, 32)
        result["taef2"] = measured(vae, lambda x: torch.nn.functional.pixel_unshuffle(ours.moments(x)[0], 2))
        autoencoder = opened(vae)
        with torch.no_grad(), autoencoder.session():
            result["taef2"]["padded"] = list(autoencoder.encode_padded(pixels(24, 33)).shape[1:])
    return result


def check_node() -> dict:
    node = antipure.NODE_CLASS_MAPPINGS["AntiPureVaeMetrics"]()
    torch.manual_seed(0)
    vae = taesd(*halves(4), 4)
    with torch.inference_mode():
        clean = torch.rand(2, 35, 33, 3)
        same = node.measure(clean.clone(), clean.clone(), vae, "none")["result"]
        less, more = (
            node.measure(clean.clone(), (clean + scale * torch.randn_like(clean)).clamp(0, 1), vae, "none")["result"]
            for scale in (0.02, 0.1)
        )
        again = [node.measure(clean.clone(), 1 - clean, vae, "noise8", 3)["result"] for _ in range(2)]
    return {"same": same[0], "less": less[0], "more": more[0], "report": more[1], "repeats": again[0] == again[1]}


def check_moments() -> dict:
    """Mean and log variance against the network's own parts, run one after another."""
    result = {}
    for name, vae in {"sd15": kl(4), "taesd4": taesd(*halves(4), 4)}.items():
        autoencoder, x = opened(vae), pixels(32, 48)
        with autoencoder.session():
            leaf = x.clone().requires_grad_()
            mean, log_variance = autoencoder.moments(leaf)
            found = {"mean": error(mean, autoencoder.encode(x)), "variance": log_variance is not None}
            if log_variance is not None:
                network, dtype = autoencoder.vae_patcher.model, next(autoencoder.vae_patcher.model.parameters()).dtype
                with torch.no_grad():
                    moments = network.quant_conv(network.encoder(x.to(dtype)))
                found["log variance"] = error(log_variance, moments.chunk(2, 1)[1])
                log_variance.sum().backward()
                found["gradient"] = float(leaf.grad.abs().mean()) > 0
        result[name] = found
    return result


def check_memory() -> dict:
    """The gradient with everything held, and with as little held as it goes."""
    autoencoder, x = opened(kl(4)), pixels(64, 48)
    gradients, held = [], []
    with autoencoder.session() as batching:
        for memory in (1e12, 1.0):
            batching.memory_bytes = memory
            batching.hold(64, 48)
            held.append(batching.plan.policies["encode"].name)
            leaf = x.clone().requires_grad_()
            autoencoder.encode(leaf).square().sum().backward()
            gradients.append(leaf.grad)
    return {"held": held, "error": error(*gradients)}


def check_targets() -> dict:
    """VAE Targets and Protect as a graph runs them, in inference mode, twice."""
    nodes = antipure.NODE_CLASS_MAPPINGS
    result = {}
    vaes = [kl(4), taesd(*halves(4), 4)]
    before = [tensors(vae.first_stage_model) for vae in vaes]
    with torch.inference_mode():
        image = (torch.rand(1, 72, 56, 3, generator=torch.Generator().manual_seed(8)) * 255).round() / 255
        latents = [vae.encode(image[:, :56]) for vae in vaes]

        def protected(preset: str, target, levels: float = 8.0):
            return nodes["AntiPureProtect"]().protect(image.clone(), target, preset, levels, 8, 1)

        def shifts(picture) -> list[float]:
            measure = nodes["AntiPureVaeMetrics"]().measure
            return [measure(image.clone(), picture.clone(), vae, "none")["result"][0] for vae in vaes]

        noise = shifts(protected("random", None)[0])
        for preset in ("robust", "robust_set", "photoguard", "mist_textural", "pid"):
            (target,) = nodes["AntiPureVaeTargets"]().build(*vaes)
            picture, _, report = protected(preset, target)
            (again,) = nodes["AntiPureVaeTargets"]().build(*vaes)
            result[preset] = {
                "repeats": bool(torch.equal(picture, protected(preset, again)[0])),
                "change": float((picture - image).abs().max() * 255),
                "report": report,
                "over random": [a / b for a, b in zip(shifts(picture), noise, strict=True)],
            }
        result["host as before"] = all(
            torch.equal(latent, vae.encode(image[:, :56])) for vae, latent in zip(vaes, latents, strict=True)
        )
    after = [tensors(vae.first_stage_model) for vae in vaes]
    result["returned"] = all(
        a is b for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True)
    )
    result["no hooks"] = not any(
        module._forward_pre_hooks or "forward" in vars(module)
        for vae in vaes
        for module in vae.first_stage_model.modules()
    )
    return result


def check_refusals() -> dict:
    result = {}
    for name, change in {"empty": {"first_stage_model": None}, "video": {"latent_dim": 3}}.items():
        vae = kl(4)
        for key, value in change.items():
            setattr(vae, key, value)
        try:
            HostAutoencoder(vae)
            result[name] = "accepted"
        except AntiPureError as problem:
            result[name] = str(problem)
    return result


if __name__ == "__main__":
    checks = {name[6:]: run for name, run in list(globals().items()) if name.startswith("check_")}
    print("RESULT " + json.dumps({name: run() for name, run in checks.items()}))
