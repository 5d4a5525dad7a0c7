"""Checks of nodes over ComfyUI's own classes on a pretended device; test_pretended_device.py runs it in each checkout.

Usage, in a checkout and with its interpreter: python pretended_checks.py PACK_FOLDER CHECKPOINT --cpu
Loads the checkpoint with ComfyUI's loader, paged (dynamic VRAM) where the version can and not, and prints one JSON
object. See pretended_paging.py for what is a stand-in here.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [".", str(Path(__file__).parent)]
PACK, CHECKPOINT = Path(sys.argv.pop(1)), sys.argv.pop(1)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402
from pretended_paging import DEVICE, Pages, device, install, memory, page  # noqa: E402, I001  (before ComfyUI looks for a device)

DYNAMIC = hasattr(comfy.model_patcher, "ModelPatcherDynamic")
install()

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402, F401

spec = importlib.util.spec_from_file_location("antipure", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
antipure = importlib.util.module_from_spec(spec)
sys.modules["antipure"] = antipure
spec.loader.exec_module(antipure)

from antipure.kernels import transfer  # noqa: E402
from antipure.methods.antipure.objective import PRESETS  # noqa: E402
from antipure.methods.antipure.protect import protect  # noqa: E402
from antipure.methods.attacks.settings import AttackSettings  # noqa: E402
from antipure.methods.errors import AntiPureError  # noqa: E402
from antipure.nodes import NODE_CLASS_MAPPINGS as NODES  # noqa: E402
from antipure.nodes import host  # noqa: E402
from antipure.nodes.dynamic_vram import give_up_pages  # noqa: E402
from antipure.nodes.latent_autoencoder import HostAutoencoder  # noqa: E402
from antipure.nodes.latent_denoiser import ModelDenoiser  # noqa: E402

logging.disable(logging.WARNING)
torch.set_num_threads(1)
TEXT = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]


@torch.inference_mode()
def load(paged: bool):
    if DYNAMIC:
        page(paged)
    model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(CHECKPOINT, output_clip=False)
    return model, vae


@torch.inference_mode()
def with_lora(model):
    """The MODEL with a change of its largest and its smallest weight, as LoRA loaders make it."""
    patched, found = model.clone(), sorted(model.model.diffusion_model.named_parameters(), key=lambda p: p[1].numel())
    changes = {}
    for name, weight in (found[0], found[-1]):
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
        changes[f"diffusion_model.{name}"] = ("diff", (0.1 * change,))
    assert len(patched.add_patches(changes, 1.0)) == 2
    return patched


@torch.inference_mode()
def sample(model) -> torch.Tensor:
    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 1)
    options = {"disable_pbar": True, "seed": 1}
    return comfy.sample.sample(model, noise, 1, 1.0, "euler", "normal", TEXT, TEXT, latent, **options)


@torch.inference_mode()
def gradient(denoiser: ModelDenoiser, between=lambda: None, begin=lambda: None) -> torch.Tensor:
    """Of a score over everything, by the picture. begin: called first; between: between forward and backward."""
    host.ready(denoiser)
    with denoiser.session():
        begin()
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)).to(DEVICE).requires_grad_()
        denoiser.batching.size(64, 64, 1)
        z = denoiser.encode(pixels)
        z = z + denoiser.predict(z, torch.tensor([300], device=DEVICE))[0]
        score = denoiser.decode(z / 10).mean() + z.square().mean()
        between()
        score.backward()
    return pixels.grad.cpu()


def host_bytes() -> int:
    """Of all tensors in the machine's memory, mapped files among them."""
    gc.collect()
    found = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.is_cpu]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def weights(*patchers) -> list[int]:
    """The memory that the weights are. ComfyUI itself makes new Parameters over it."""
    return [p.data_ptr() for patcher in patchers for p in patcher.model.parameters()]


def bytes_of(*patchers) -> int:
    """What the weights take in the precision that they compute in, float32 here."""
    return 4 * sum(p.numel() for patcher in patchers for p in patcher.model.parameters())


def check_plain() -> dict:
    model, vae = load(paged=False)
    before = sample(model)
    found = gradient(ModelDenoiser(model, vae, TEXT))
    return {
        "device": str(model.load_device),
        "finite": bool(found.isfinite().all() and found.abs().max() > 0),
        "sampling": bool(torch.equal(sample(model), before)),
    }


def check_dynamic() -> dict | None:
    if not DYNAMIC:
        return None
    model, vae = load(paged=False)
    expected, patched = gradient(ModelDenoiser(model, vae, TEXT)), gradient(ModelDenoiser(with_lora(model), vae, TEXT))
    comfy.model_management.unload_all_models()
    del model, vae
    model, vae = load(paged=True)
    pair = (model, vae.patcher)
    before = sample(model)
    denoiser = ModelDenoiser(model, vae, TEXT)
    host.ready(denoiser)  # ComfyUI moves some weights of a few bytes for good
    originals, least, left = weights(*pair), host_bytes(), memory().now
    held: dict[str, float] = {}

    def count() -> None:
        held["device"], held["host"] = memory().now - left, host_bytes() - least

    def evict() -> None:
        for one in Pages._all:
            one.free_memory(1e32)

    found = {
        "dynamic": model.is_dynamic() and vae.patcher.is_dynamic(),
        "error": float((gradient(denoiser, evict, count) - expected).abs().max() / expected.abs().max()),
        "originals": weights(*pair) == originals,
        "left on the device": memory().now - left,
        "device over weights": held["device"] / bytes_of(*pair),
        "host over weights": held["host"] / bytes_of(*pair),
    }
    lora = with_lora(model)
    acts = gradient(ModelDenoiser(lora, vae, TEXT))
    found["LoRA"] = float((acts - patched).abs().max() / patched.abs().max())
    found["LoRA acts"] = float((acts - expected).abs().max() / expected.abs().max())

    class Cancelled(BaseException):
        pass

    def cancel() -> None:
        raise Cancelled

    for name, kind, stop in (("cancel", Cancelled, cancel), ("failure", ZeroDivisionError, lambda: 1 / 0)):
        try:
            gradient(denoiser, stop)
        except kind:
            found[name] = weights(*pair) == originals
    found["sampling"] = bool(torch.equal(sample(model), before))
    give_up_pages(model)
    found["nested"] = nested(denoiser, vae, originals, pair)
    try:
        host.ready(denoiser, ModelDenoiser(lora, vae, TEXT))
    except AntiPureError as error:
        found["two versions"] = str(error)
    found["paged gradients fail"] = paged_gradient(model)
    return found


@torch.inference_mode()
def nested(denoiser: ModelDenoiser, vae, originals: list, pair: tuple) -> bool:
    """The VAE's own session within the denoiser's, both over one network."""
    alone = HostAutoencoder(vae)
    host.ready(denoiser, alone)
    with denoiser.session():
        with alone.session():
            inner = weights(vae.patcher)
        outer = weights(vae.patcher)
    return inner == outer != originals[-len(inner) :] and weights(*pair) == originals


def paged_gradient(model) -> bool:
    """Whether a gradient through paged weights is found out here, once they are paged out."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    layer = max(model.model.modules(), key=lambda m: hasattr(m, "_v") and m.weight.numel())
    with torch.inference_mode(False):
        x = torch.ones(1, *layer.weight.shape[1:], device=DEVICE, requires_grad=True)
        score = layer(x).sum()
        for one in Pages._all:
            one.free_memory(1e32)
        try:
            score.backward()
        except RuntimeError:
            return True
    return False


@torch.inference_mode()
def check_nodes() -> dict:
    """Protect, Purify and Train Model Patch on what the loader gives by default, and the patch on the MODEL."""
    model, vae = load(paged=DYNAMIC)
    before = sample(model)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    (denoiser,) = NODES["AntiPureDenoiserFromModel"]().build(model, vae, TEXT)
    protected = NODES["AntiPureProtect"]().protect(image, denoiser, "strong", 8.0, 1, 0)[0]
    again = NODES["AntiPureProtect"]().protect(image, denoiser, "strong", 8.0, 1, 0)[0]
    patch = NODES["AntiPureTrainModelPatch"]().train(denoiser, image, "AI", 2, 1, 2, "scalar", 1e-3, 0)[0]
    patched = NODES["AntiPureLoraPatchApply"]().apply(patch, 1.0, model=model)[1]
    acts = sample(patched)
    return {
        "device": str(denoiser.device),
        "budget": float((protected - image).abs().max()) * 255,
        "changed": float((protected - image).abs().max()) > 1 / 255,
        "same bytes": bool(torch.equal(protected, again)),
        "patch": bool(acts.isfinite().all()),
        "sampling": bool(torch.equal(sample(model), before)),
    }


@torch.inference_mode()
def check_waits() -> dict[str, int]:
    """Where the host would wait for a GPU in one more step of `strong`, ComfyUI's own code among it."""
    model, vae = load(paged=False)
    denoiser, found = ModelDenoiser(model, vae, TEXT), []
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for steps in (2, 3):
        host.ready(denoiser)
        with denoiser.session(), device.waits() as places:
            protect(picture, denoiser, PRESETS["strong"], AttackSettings(8.0, steps))
        found.append(Counter(places))
    return dict(found[1] - found[0])


if __name__ == "__main__":
    transfer.PINNED.add(device.NAME)
    checks = {name[6:]: run for name, run in list(globals().items()) if name.startswith("check_")}
    print("RESULT " + json.dumps({name: run() for name, run in checks.items()}))
