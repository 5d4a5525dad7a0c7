"""A custom node that measures inside a running ComfyUI, for `benchmarks.gpu`: memory, time, gradients.

It reaches into the pack that the same server has loaded. Everything it finds goes to one JSON file as it is found.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_OWN = ("_pin_state", "_pins", "_v", "_v_block", "_v_weight", "_v_bias")  # ComfyUI's paging: not to be copied


def pack(name: str):
    """A module of the pack, which has its folder's name here."""
    for key, module in list(sys.modules.items()):
        if key.endswith("nodes.latent_denoiser") and hasattr(module, "ModelDenoiser"):
            return importlib.import_module(key.removesuffix("nodes.latent_denoiser") + name)
    raise RuntimeError("the pack is not loaded")


def copied(network: torch.nn.Module) -> torch.nn.Module:
    """In float32, without ComfyUI's records: two owners would free one page."""
    memo = {id(value): None for m in network.modules() for name, value in vars(m).items() if name in _OWN}
    with torch.inference_mode(False):
        return copy.deepcopy(network, memo).float().requires_grad_(False)


@contextmanager
def exact() -> Iterator[None]:
    """Without TF32, torch's default for convolutions on a GPU."""
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


class GpuProbe:
    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES = "test", "probe", True, ()

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        required = {name.lower(): (name,) for name in ("MODEL", "VAE", "CONDITIONING", "IMAGE")}
        numbers = {"out": ("STRING", {}), "steps": ("INT", {"default": 3}), "cap_gb": ("FLOAT", {"default": 0.0})}
        return {"required": {**required, **numbers}}

    def probe(self, model, vae, conditioning, image, out, steps, cap_gb) -> dict:
        import comfy.model_management as management

        host, latent = pack("nodes.host"), pack("nodes.latent_denoiser")
        self.denoiser = denoiser = latent.ModelDenoiser(model, vae, conditioning)
        self.gpu, self.steps, self.found = management.get_torch_device().type == "cuda", steps, {}
        self.management, self.host, self.model, self.vae = management, host, model, vae
        if cap_gb and self.gpu:
            # A card of cap_gb that holds nothing else: torch may take no more, and whoever asks is told so.
            management.unload_all_models()
            management.soft_empty_cache()
            torch.cuda.set_per_process_memory_fraction(cap_gb * 1e9 / torch.cuda.mem_get_info()[1])
            free = cap_gb * 1e9
            host.memory_allowance = lambda d: max(768 * 2**20, (free - torch.cuda.memory_allocated()) // 2)
        with torch.inference_mode(False):
            self.picture = image[..., :3].float().clone().permute(0, 3, 1, 2).to(denoiser.device)
        try:
            before, started = self.used(), time.perf_counter()
            host.ready(denoiser)
            with denoiser.session() as batching:
                self.wait()
                self.found["ready"] = {
                    "s": time.perf_counter() - started, "GB more on the device": (self.used() - before) / 1e9,
                    "weights GB": denoiser.borrowed_bytes / 1e9, "dynamic": getattr(model, "is_dynamic", bool)(),
                    "allowance GB": batching.memory_bytes / 1e9, "tile": denoiser.tile_for(*self.picture.shape[-2:]),
                }  # fmt: skip
                self.note("floor", self.floor, out)
                for name in dict.fromkeys((pack("nodes.protect").DEFAULT, "strong", "paper")):
                    self.note(name, lambda name=name: self.cost(name), out)
            for name in ("gradient", "evicted", "same_bytes"):
                self.note(name, getattr(self, name), out)
        finally:
            if cap_gb and self.gpu:
                torch.cuda.set_per_process_memory_fraction(1.0)
                importlib.reload(host)
        return {}

    def note(self, name: str, work: Callable[[], dict], out: str) -> None:
        started = time.perf_counter()
        try:
            self.found[name] = work()
        except Exception:
            self.found[name] = {"failed": traceback.format_exc()[-2500:]}
        self.found[name]["took, s"] = time.perf_counter() - started
        with open(out, "w", encoding="utf-8") as file:
            json.dump(self.found, file, indent=1, default=str)

    def used(self) -> int:
        return torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] if self.gpu else 0

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def protect(self, name: str, steps: int) -> torch.Tensor:
        presets, settings = pack("methods.antipure.objective").PRESETS, pack("methods.attacks.settings").AttackSettings
        return pack("methods.antipure.protect").protect(
            self.picture, self.denoiser, presets[name], settings(steps=steps)
        )

    def cost(self, name: str) -> dict:
        """A step's time and memory. Inside a session."""
        self.protect(name, 1)
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated() if self.gpu else 0
        self.wait()
        started = time.perf_counter()
        self.protect(name, self.steps)
        self.wait()
        batching = self.denoiser.batching
        return {
            "s per step": (time.perf_counter() - started) / self.steps,
            "before it GB": base / 1e9,
            "peak GB": torch.cuda.max_memory_allocated() / 1e9 if self.gpu else None,
            "policies": {key: str(value) for key, value in batching.plan.policies.items()},
            "one tile GB": batching.plan.each / 1e9,
            "tiles at once": batching.latest,
        }

    def floor(self) -> dict:
        """Bare forwards and backwards of the three parts, one tile, everything held. Inside a session."""
        d, side = self.denoiser, self.denoiser.tile_for(*self.picture.shape[-2:])
        with torch.inference_mode(False):
            z = torch.randn(1, d._channels, side // d.multiple, side // d.multiple, device=d.device)
            t = torch.full((1,), 20, device=d.device)
            blank = torch.zeros(1, 3, side, side, device=d.device)
        parts = {
            "encode": (d._encode, blank),
            "predict": (lambda x: d._predict_noise(x, t), z),
            "decode": (d._decode, z),
        }
        found: dict = {"tile": side}
        for name, (function, x) in parts.items():

            def once(function=function, x=x) -> None:
                with torch.enable_grad():
                    function(x.detach().clone().requires_grad_()).sum().backward()

            once()
            self.wait()
            started = time.perf_counter()
            for _ in range(3):
                once()
            self.wait()
            found[f"{name}, s"] = (time.perf_counter() - started) / 3
        pictures = pack("methods.pictures")
        height, width = (max(length, side) for length in self.picture.shape[-2:])
        found["tiles"] = len(pictures.random_positions(height, width, side, pictures.random_stream(0, 0)))
        one = found["encode, s"] + 4 * found["predict, s"] + found["decode, s"]
        found["strong, bare, s per step"] = found["tiles"] * one
        return found

    def one_gradient(self, between: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Of a score over all three parts, in a session of its own; between: called before the backward pass."""
        d, side = self.denoiser, min(512, *self.picture.shape[-2:])
        self.host.ready(d)
        with d.session() as batching:
            leaf = (self.picture[:1, :, :side, :side] * 2 - 1).contiguous().requires_grad_()
            batching.size(side, side, 2)
            with torch.enable_grad():
                z = d.encode(leaf)
                for k in (30, 300):
                    z = z + d.predict(z, torch.tensor([k], device=d.device))[0]
                score = d.decode(z / 10).mean() + z.square().mean()
                between()
                score.backward()
            return leaf.grad.double().flatten()

    def evict(self) -> None:
        """Everything that the host may, off the device."""
        self.management.free_memory(1e30, self.denoiser.device)

    def evicted(self) -> dict:
        """Where everything else is sent off the device between forward and backward, and between two sessions."""
        first, again = self.one_gradient(), self.one_gradient()
        during = self.one_gradient(self.evict)
        self.management.unload_all_models()
        self.management.soft_empty_cache()
        left = self.used()
        after = self.one_gradient()

        def apart(x: torch.Tensor) -> float:
            return float((x - first).norm() / first.norm())

        return {"twice": apart(again), "during": apart(during), "after": apart(after), "GB while evicted": left / 1e9}

    def gradient(self) -> dict:
        """Against float32 copies of both networks, plain attention, no TF32; for eps models such as SD's.

        Also ours without TF32, and so with everything sent off the device before the backward pass.
        """
        mine, again, d = self.one_gradient(), self.one_gradient(), self.denoiser
        with exact():
            untouched, during = self.one_gradient(), self.one_gradient(self.evict)
        network, first = copied(self.model.model.diffusion_model), copied(self.vae.first_stage_model)
        network.dtype = torch.float32
        side = min(512, *self.picture.shape[-2:])
        with d.session(), torch.inference_mode(False):
            shape = (1, d._channels, side // d.multiple, side // d.multiple)
            conditions = d._conditions(torch.zeros(shape, device=d.device))[0]["model_conds"]
            given = {
                key: value.cond.float().to(d.device) for key, value in conditions.items() if hasattr(value, "cond")
            }
        network, first = network.to(d.device), first.to(d.device)
        latents = self.model.model.latent_format
        plain = {"optimized_attention_override": lambda function, *a, **k: _attention(*a, **k)}
        context, more = given["c_crossattn"], {key: given[key] for key in ("y",) if key in given}
        with exact(), torch.inference_mode(False), torch.enable_grad():
            leaf = (self.picture[:1, :, :side, :side] * 2 - 1).contiguous().requires_grad_()
            z = latents.process_in(first.encode(leaf))
            for k in (30, 300):
                t = torch.tensor([float(k)], device=d.device)
                z = z + network(z, t, context=context, transformer_options=plain, **more)
            pixels = first.decode(latents.process_out(z / 10)).clamp(-1, 1)
            (pixels.mean() + z.square().mean()).backward()
        reference = leaf.grad.double().flatten()

        def error(gradient: torch.Tensor) -> float:
            return float((gradient - reference).norm() / reference.norm())

        return {
            "error": error(mine),
            "error, TF32 off": error(untouched),
            "error, TF32 off, evicted": error(during),
            "twice": float((again - mine).norm() / mine.norm()),
            "signs alike": float((mine.sign() == reference.sign()).double().mean()),
            "finite": bool(mine.isfinite().all()),
        }

    def same_bytes(self) -> dict:
        """Share of values that differ between two runs, as it is and `reproducible`, and with less free memory."""
        reproducible, found = pack("methods.gradients.reproducible").reproducible, {}

        def run(fixed: bool) -> torch.Tensor:
            self.host.ready(self.denoiser)
            with reproducible(fixed), self.denoiser.session():
                return self.protect("strong", 2)

        for fixed in (False, True):
            one = run(fixed)
            found["reproducible" if fixed else "as it is"] = float(
                ((one - run(fixed)).abs() * 255 > 0.5).float().mean()
            )
        return found


def _attention(*arguments, **more):
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*arguments, **more)


NODE_CLASS_MAPPINGS = {"GpuProbe": GpuProbe}
