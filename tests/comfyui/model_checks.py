"""Checks of nodes/latent_denoiser.py over ComfyUI's own classes; test_model_gradients.py runs it in each checkout.

Usage, in a checkout and with its interpreter: python model_checks.py PACK_FOLDER --cpu
Builds a tiny random SD 1.5-like model and VAE in inference mode, as loader nodes do, and prints one JSON object.
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

import comfy.latent_formats  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.attention import attention_pytorch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

spec = importlib.util.spec_from_file_location("antipure", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
antipure = importlib.util.module_from_spec(spec)
sys.modules["antipure"] = antipure
spec.loader.exec_module(antipure)

from antipure.methods.antipure.objective import PRESETS  # noqa: E402
from antipure.methods.antipure.protect import antipure_loss  # noqa: E402
from antipure.methods.diffusion.batching import SEGMENTS  # noqa: E402
from antipure.methods.diffusion.denoiser import add_noise  # noqa: E402
from antipure.methods.errors import AntiPureError  # noqa: E402
from antipure.methods.gradients.differentiation import counting, storages  # noqa: E402
from antipure.methods.gradients.memory_plan import CheckpointPlan, CheckpointPolicy  # noqa: E402
from antipure.nodes import host  # noqa: E402
from antipure.nodes.latent_denoiser import ModelDenoiser  # noqa: E402

logging.disable(logging.WARNING)
torch.set_num_threads(1)
CONTEXT = 24
KINDS = {"eps": "EPS", "v": "V_PREDICTION", "flow": "FLOW"}
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": CONTEXT, "use_spatial_transformer": True,
    "legacy": False, "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim > 1:
            value = torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5
        else:
            value = 0.1 * torch.randn(p.shape, generator=generator) + (1.0 if name.endswith("weight") else 0.0)
        p.data.copy_(value)


@torch.inference_mode()
def make(kind: str = "eps", seed: int = 0, manual_cast: torch.dtype | None = None, **changes):
    """MODEL, VAE, CONDITIONING of inference tensors."""
    config = comfy.supported_models.SD15({**UNET, "dtype": torch.float32, **changes})
    config.unet_config["num_heads"] = 2
    if manual_cast is not None:
        config.manual_cast_dtype = manual_cast
    base = comfy.model_base.BaseModel(config, model_type=getattr(comfy.model_base.ModelType, KINDS[kind]))
    randomise(base.diffusion_model, seed)
    if config.inpaint_model() and "out_channels" not in changes:
        base.set_inpaint()
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)
    vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": VAE, "embed_dim": 4}})
    randomise(vae.first_stage_model, seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    text = [[torch.randn(1, 7, CONTEXT, generator=generator), {"pooled_output": torch.randn(1, 8)}]]
    return patcher, vae, text


def picture(height: int, width: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def score(denoiser, pixels: torch.Tensor, weights: dict) -> torch.Tensor:
    """Something that uses encode, predict at two timesteps in a row, and decode."""
    z = denoiser.encode(pixels)
    for t in (30, 300):
        index = torch.tensor([t], device=z.device)
        x_t = add_noise(z, weights["noise"].to(z), denoiser.alphas_cumprod[index])
        z = z + denoiser.predict(x_t, index)[0]
    return (denoiser.decode(z / 10) * weights["pixels"].to(z)).mean() + z.square().mean()


class Reference:
    """The same in float64, from the modules' weights and the textbook formulas; nothing of ours or of BaseModel's."""

    def __init__(self, patcher, vae, text):
        operations = comfy.ops.disable_weight_init
        unet = {k: v for k, v in patcher.model.model_config.unet_config.items() if k != "dtype"}
        self.unet = UNetModel(**unet, dtype=torch.float64, operations=operations)
        self.vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": VAE, "embed_dim": 4}}).first_stage_model.double()
        for mine, theirs in ((self.unet, patcher.model.diffusion_model), (self.vae, vae.first_stage_model)):
            mine.load_state_dict({k: v.detach().clone().double() for k, v in theirs.state_dict().items()})
            mine.requires_grad_(False)
        self.text = text[0][0].clone().double()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.options = {"optimized_attention_override": lambda function, *a, **k: attention_pytorch(*a, **k)}

    def encode(self, pixels):
        return self.vae.encode(pixels) * 0.18215

    def decode(self, z):
        return self.vae.decode(z / 0.18215).clamp(-1, 1)

    def predict(self, x_t, t):
        dtype = self.text.dtype
        out = self.unet(x_t.to(dtype), t.float(), context=self.text, transformer_options=self.options)
        return out.to(x_t.dtype), None

    def compute_in(self, dtype):
        """The UNet in another precision; everything around it stays float64."""
        self.unet, self.text = self.unet.to(dtype), self.text.to(dtype)
        self.unet.dtype = dtype


def gradient_of(denoiser, pixels: torch.Tensor, weights: dict) -> torch.Tensor:
    leaf = pixels.clone().requires_grad_()
    score(denoiser, leaf, weights).backward()
    return leaf.grad


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def opened(patcher, vae, text) -> ModelDenoiser:
    denoiser = ModelDenoiser(patcher, vae, text)
    host.ready(denoiser)
    return denoiser


def tensors(*modules) -> list:
    return [t for m in modules for t in [*m.parameters(), *m.buffers()]]


def check_gradient() -> dict:
    patcher, vae, text = make()
    pixels = picture(40, 48)
    generator = torch.Generator().manual_seed(9)
    weights = {
        "noise": torch.randn(1, 4, 5, 6, generator=generator),
        "pixels": torch.randn(1, 3, 40, 48, generator=generator),
    }
    result = {}
    denoiser = opened(patcher, vae, text)
    with torch.inference_mode(False):
        reference = Reference(patcher, vae, text)
        expected = gradient_of(reference, pixels.double(), weights)
        direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        direction = direction / direction.norm()
        h = 1e-5
        with torch.no_grad():
            up, down = (score(reference, pixels.double() + s * h * direction, weights) for s in (1, -1))
        result["finite_differences"] = float(abs((up - down) / (2 * h) / (expected * direction).sum() - 1))
    with denoiser.session():
        for policy in CheckpointPolicy:
            denoiser.batching.plan = CheckpointPlan(dict.fromkeys(SEGMENTS, policy), 0, 0, True)
            ours = gradient_of(denoiser, pixels.clone(), weights)
            result[policy.name] = error(ours, expected)
        result["saved"] = saved_by(denoiser, pixels)
    result["alphas_cumprod"] = float((denoiser.alphas_cumprod.double() - reference.alphas_cumprod).abs().max())
    return result


def saved_by(denoiser: ModelDenoiser, pixels: torch.Tensor) -> dict[str, int]:
    """Bytes that each policy really holds between encoding and the backward pass."""
    found = {}
    for policy in CheckpointPolicy:
        denoiser.batching.plan = CheckpointPlan(dict.fromkeys(SEGMENTS, policy), 0, 0, True)
        with torch.enable_grad(), counting(storages(denoiser.vae_patcher.model)) as saved:
            denoiser.encode(pixels.clone().requires_grad_())
        found[policy.name] = sum(saved.values())
    return found


def check_precision() -> dict:
    """Weights in half precision, computed in it and (cast) in float32, against float64 from the same weights.

    Half precision is compared with the bare network's own error in it.
    """
    result = {}
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    weights = {"noise": noise, "pixels": torch.ones(1, 3, 32, 32)}
    for name, dtype, cast in (
        ("bfloat16", torch.bfloat16, None),
        ("float16", torch.float16, None),
        ("float16_cast", torch.float16, torch.float32),
        ("float8_cast", torch.float8_e4m3fn, torch.float32),
    ):
        patcher, vae, text = make(dtype=dtype, manual_cast=cast)
        types = {p.dtype for p in patcher.model.diffusion_model.parameters()}
        with torch.inference_mode(False):
            reference = Reference(patcher, vae, text)
            expected = gradient_of(reference, picture(32, 32).double(), weights)
            if cast is None:
                reference.compute_in(dtype)
                result[f"{name}_bare"] = error(gradient_of(reference, picture(32, 32).double(), weights), expected)
        denoiser = opened(patcher, vae, text)
        with denoiser.session():
            for policy in (CheckpointPolicy.STORE, CheckpointPolicy.BLOCKS):
                denoiser.batching.plan = CheckpointPlan(dict.fromkeys(SEGMENTS, policy), 0, 0, True)
                found = gradient_of(denoiser, picture(32, 32), weights)
                result[f"{name}_{policy.name}"] = error(found, expected) if types == {dtype} else None
    return result


def check_block_numbers() -> dict:
    """A patch that acts in one block only, told by the number that the network writes down: both runs must see it."""
    patcher, vae, text = make()
    patcher = patcher.clone()

    def only_there(q, k, v, extra_options):
        return (q, k, 3 * v) if extra_options["block"] == ("input", 1) else (q, k, v)

    patcher.set_model_attn1_patch(only_there)
    result = {}
    for name, model in (("patched", patcher), ("plain", make()[0])):
        denoiser = opened(model, vae, text)
        noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
        weights = {"noise": noise, "pixels": torch.ones(1, 3, 32, 32)}
        with denoiser.session():
            for policy in (CheckpointPolicy.STORE, CheckpointPolicy.BLOCKS):
                denoiser.batching.plan = CheckpointPlan(dict.fromkeys(SEGMENTS, policy), 0, 0, True)
                result[name, policy.name] = gradient_of(denoiser, picture(32, 32), weights)
    return {
        "acts": error(result["patched", "STORE"], result["plain", "STORE"]),
        "in_blocks": error(result["patched", "BLOCKS"], result["patched", "STORE"]),
    }


def check_restored() -> dict:
    patcher, vae, text = make()
    denoiser = opened(patcher, vae, text)
    modules = patcher.model, vae.first_stage_model
    before = tensors(*modules)
    storages = {t.untyped_storage().data_ptr() for t in before}
    result = {"all_inference": all(t.is_inference() for t in before)}

    def whole() -> bool:
        after = tensors(*modules)
        return len(after) == len(before) and all(a is b for a, b in zip(after, before, strict=True))

    with denoiser.session():
        inside = tensors(*modules)
        result["none_inference"] = not any(t.is_inference() for t in inside)
        result["no_new_storage"] = {t.untyped_storage().data_ptr() for t in inside} == storages
        gradient_of(denoiser, picture(32, 32), {"noise": torch.zeros(1, 4, 4, 4), "pixels": torch.ones(1, 3, 32, 32)})
        result["no_weight_gradients"] = all(t.grad is None for t in inside)
    result["after_work"] = whole()
    for problem in (RuntimeError, KeyboardInterrupt, torch.cuda.OutOfMemoryError):
        try:
            with denoiser.session():
                raise problem("stop")
        except problem:
            result[f"after_{problem.__name__}"] = whole()

    class Cancelled(BaseException):
        pass

    def cancel(*_):
        raise Cancelled

    handle = patcher.model.diffusion_model.middle_block[0].register_forward_hook(cancel)
    try:
        opened(patcher, vae, text).session().__enter__()
    except Cancelled:
        result["after_cancel_in_forward"] = whole()
    handle.remove()

    check = host.check_interrupted
    for policy in CheckpointPolicy:
        denoiser, calls, allowed = opened(patcher, vae, text), [], [10**9]

        def cancelled(calls=calls, allowed=allowed):
            calls.append(1)
            if len(calls) > allowed[0]:
                raise Cancelled

        try:
            with denoiser.session():
                denoiser.batching.plan = CheckpointPlan(dict.fromkeys(SEGMENTS, policy), 0, 0, True)
                host.check_interrupted = cancelled
                with torch.enable_grad():
                    out = denoiser.decode(denoiser.encode(picture(32, 32).requires_grad_())).mean()
                allowed[0] = len(calls)  # cancelled in the first thing that the backward pass runs again
                out.backward()
        except Cancelled:
            pass
        finally:
            host.check_interrupted = check
        if policy is not CheckpointPolicy.STORE:
            result[f"after_cancel_in_backward_{policy.name}"] = whole() and len(calls) == allowed[0] + 1
    return result


def check_lora() -> dict:
    patcher, vae, text = make()
    key = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(3)
        weight = patcher.model.diffusion_model.get_submodule(key).weight
        lora = {
            "x.lora_up.weight": torch.randn(weight.shape[0], 4, generator=generator),
            "x.lora_down.weight": torch.randn(4, weight.shape[1], generator=generator),
        }
        patched = patcher.clone()
        patched.add_patches(comfy.lora.load_lora(lora, {"x": f"diffusion_model.{key}.weight"}), 0.5)
    weights = {"noise": torch.randn(1, 4, 4, 4, generator=generator), "pixels": torch.ones(1, 3, 32, 32)}
    plain, with_lora = opened(patcher, vae, text), None
    with plain.session():
        first = gradient_of(plain, picture(32, 32), weights)
    with_lora = opened(patched, vae, text)
    with torch.inference_mode(False):
        expected = gradient_of(Reference(patched, vae, text), picture(32, 32).double(), weights)
    with with_lora.session():
        second = gradient_of(with_lora, picture(32, 32), weights)
    host.ready(plain)
    with plain.session():
        third = gradient_of(plain, picture(32, 32), weights)
    return {
        "changes_the_gradient": error(second, first),
        "error": error(second, expected),
        "gone_afterwards": bool(torch.equal(first, third)),
    }


def check_sizes() -> dict:
    patcher, vae, text = make()
    denoiser = opened(patcher, vae, text)
    result = {}
    with denoiser.session():
        for preset in ("strong", "paper"):
            pixels = picture(35, 33).requires_grad_()
            with torch.enable_grad():
                for term in antipure_loss(denoiser, PRESETS[preset], pixels.detach()).terms(
                    pixels * 0.99, torch.Generator().manual_seed(1)
                ):
                    term.backward()
            result[preset] = int((pixels.grad == 0).any(1).sum())
        result["tiles"] = [denoiser.tile_for(*size) for size in ((35, 33), (512, 512), (667, 1001))]
    return result


def check_formulas() -> dict:
    result = {}
    for kind in KINDS:
        patcher, vae, text = make(kind)
        denoiser = opened(patcher, vae, text)
        generator = torch.Generator().manual_seed(4)
        x0, noise = (torch.randn(3, 4, 6, 6, generator=generator) for _ in range(2))
        # From 10 on: below it float32 holds 1 - abar of a flow model to a few per cent only.
        t = torch.tensor([9, 99, 900])
        with denoiser.session(), torch.no_grad():
            abar = denoiser.alphas_cumprod[t].view(-1, 1, 1, 1)
            x_t = add_noise(x0, noise, denoiser.alphas_cumprod[t])
            unet, context = patcher.model.diffusion_model, text[0][0].clone().expand(3, -1, -1)
            a, b = abar.sqrt(), (1 - abar).sqrt()
            if kind == "flow":
                s = ((t + 1) / 1000).view(-1, 1, 1, 1)  # shift 1: timestep k is the noise level k/1000
                x = (1 - s) * x0 + s * noise
                velocity = unet(x, s.flatten() * 1000, context=context)
                expected = x + (1 - s) * velocity
                result["flow_noise_to_signal"] = error(b / a, s / (1 - s))
            else:
                out = unet(x_t, t.float(), context=context)
                expected = out if kind == "eps" else a * out + b * x_t
            result[kind] = error(denoiser.predict(x_t, t)[0], expected)
    return result


def check_sampling() -> dict:
    patcher, vae, text = make()

    @torch.inference_mode()
    def sample() -> torch.Tensor:
        latent = torch.zeros(1, 4, 8, 8)
        noise = comfy.sample.prepare_noise(latent, 1)
        return comfy.sample.sample(patcher, noise, 3, 4.0, "euler", "normal", text, text, latent, seed=1)

    before = sample()
    image = torch.rand(1, 35, 33, 3)
    nodes = antipure.NODE_CLASS_MAPPINGS
    result = {}
    with torch.inference_mode():
        (denoiser,) = nodes["AntiPureDenoiserFromModel"]().build(patcher, vae, text)
        protected, _, report = nodes["AntiPureProtect"]().protect(image.clone(), denoiser, "strong", 4.0, 2, 0)
        result["report"] = report
        result["levels"] = float((protected - image).abs().max() * 255)
        (both,) = nodes["AntiPureCombineDenoisers"]().build(
            denoiser, nodes["AntiPureLoadDenoiser"]().load("bundled", "fp32")[0], "worst"
        )
        together = nodes["AntiPureProtect"]().protect(image.clone(), both, "strong", 4.0, 2, 0)[0]
        result["combined_levels"] = float((together - image).abs().max() * 255)
        for method in ("gridpure", "diffpure", "vae"):
            pure, _ = nodes["AntiPureDiffusionPurify"]().purify(image.clone(), denoiser, method, 2, 1, 0.1, 0)
            again, _ = nodes["AntiPureDiffusionPurify"]().purify(image.clone(), denoiser, method, 2, 1, 0.1, 0)
            result[method] = [list(pure.shape), bool(torch.equal(pure, again)), bool((pure - image).abs().max() > 0)]
    result["identical"] = bool(torch.equal(before, sample()))
    return result


def with_latents(family: str, vae_family: str):
    """A MODEL of one family and a VAE whose latents show pictures in the colours of another, as previews map them."""
    formats = comfy.latent_formats
    own, other = getattr(formats, family)(), getattr(formats, vae_family)()
    channels = own.latent_channels
    factors = torch.tensor(other.latent_rgb_factors)
    inverse = torch.linalg.pinv(factors)  # RGB to the latent that shows it
    texture = torch.randn(channels, channels, generator=torch.Generator().manual_seed(3))
    hidden = texture - texture @ factors @ inverse  # what the colours do not see

    class Encoder(torch.nn.Module):
        def encode(self, image):
            small = torch.nn.functional.avg_pool2d(image.float(), 8)
            noise = torch.randn(1, channels, *small.shape[-2:], generator=torch.Generator().manual_seed(4))
            latent = torch.einsum("bchw,cd->bdhw", small, inverse) + torch.einsum("bchw,cd->bdhw", noise, 0.2 * hidden)
            return other.process_out(latent)

        def decode(self, latent):
            return torch.nn.functional.interpolate(latent[:, :3], scale_factor=8)

    patcher, vae, _ = make(in_channels=channels, out_channels=channels)
    patcher.model.latent_format = own
    with torch.inference_mode():
        vae.first_stage_model = Encoder()
        vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, torch.device("cpu"), torch.device("cpu"))
    vae.latent_channels = channels
    return patcher, vae


def check_refusals() -> dict:
    patcher, vae, text = make()
    result = {}

    def refused(name: str, *inputs) -> None:
        try:
            denoiser = ModelDenoiser(*inputs)
            host.ready(denoiser)
            with denoiser.session():
                result[name] = "accepted"
        except AntiPureError as problem:
            result[name] = str(problem)

    for own, other in (("SD15", "SDXL"), ("SDXL", "SD15"), ("SD15", "SD15"), ("SD3", "Flux"), ("Flux", "Flux")):
        name = f"{own} with {other}'s VAE"
        refused(name, *with_latents(own, other), text)

    refused("conditioning", patcher, vae, [[torch.zeros(1, 7, CONTEXT + 8), {}]])
    refused("control", patcher, vae, [[text[0][0], {"control": object()}]])
    refused("empty", patcher, vae, [])
    refused("inpainting", make(in_channels=9)[0], vae, text)
    vae.latent_channels = 16
    refused("vae", patcher, vae, text)
    vae.latent_channels = 4
    vae.latent_dim = 3
    refused("video_vae", patcher, vae, text)
    vae.latent_dim = 2
    wide = make()[0]
    wide.model.model_config.unet_config["context_dim"] = None  # a family whose width cannot be read beforehand
    refused("probed", wide, vae, [[torch.zeros(1, 7, CONTEXT + 8), {}]])
    wide.model.latent_format.latent_dimensions = 3
    refused("video", wide, vae, text)
    return result


if __name__ == "__main__":
    checks = {name[6:]: run for name, run in list(globals().items()) if name.startswith("check_")}
    print("RESULT " + json.dumps({name: run() for name, run in checks.items()}))
