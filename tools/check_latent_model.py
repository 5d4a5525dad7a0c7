"""Check that ComfyUI's own classes load the demo latent model and compute what our training code computes.

    python -m tools.check_latent_model --comfyui path/to/ComfyUI [--folder path/to/files]

In ComfyUI's own environment, once per version. Without --folder: networks of random weights (every weight, also those
that start at zero), so it can be run before anything is trained. Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch
from safetensors.torch import load_file

from tools.latent_networks import SCALE, SHIFT, Autoencoder, Conditions, MMDiT


def random_files() -> tuple[dict, dict, dict]:
    """State dicts of an autoencoder, a transformer and conditions with random weights throughout, fp16-exact."""
    torch.manual_seed(0)
    autoencoder, model = Autoencoder(), MMDiT()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.7 / max(parameter[0].numel(), 1) ** 0.5)
    autoencoder.norm.running_mean.normal_()
    autoencoder.norm.running_var.uniform_(0.01, 0.1)
    return autoencoder.exported(), {k: v.half() for k, v in model.state_dict().items()}, {}


def files_of(folder: Path) -> tuple[dict, dict, dict]:
    """The three files that training leaves; the model may lie in several shards."""
    model: dict = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        model |= load_file(shard)
    return load_file(folder / "autoencoder.safetensors"), model, load_file(folder / "conditions.safetensors")


class _Stub(types.ModuleType):
    """A module in which every name exists; classes, so that code may inherit from them."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Stubs(MetaPathFinder, Loader):
    """Finds a package and whatever is asked for in it."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, fullname, path=None, target=None):  # noqa: ANN001, ANN201
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] == self.package else None

    def create_module(self, spec):  # noqa: ANN001, ANN201
        return _Stub(spec.name)

    def exec_module(self, module):  # noqa: ANN001, ANN201
        module.__version__ = "0.0.0"


def stub_companions() -> None:
    """Where torchvision or torchaudio do not import beside this torch: nothing that is checked here uses them."""
    for package in ("torchvision", "torchaudio"):
        try:
            importlib.import_module(package)
        except Exception:
            for name in [n for n in sys.modules if n.split(".")[0] == package]:
                del sys.modules[name]
            sys.meta_path.insert(0, _Stubs(package))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    vae_file, model_file, conditions = files_of(args.folder) if args.folder else random_files()
    sys.path.insert(0, str(args.comfyui))
    sys.argv = [sys.argv[0], "--cpu"]
    stub_companions()
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sample
    import comfy.sd

    failures = 0

    def report(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
        nonlocal failures
        error = float((ours - theirs).abs().max() / ours.std().clamp(min=1e-6))
        failures += not error <= tolerance
        print(f"{'ok  ' if error <= tolerance else 'FAIL'} {name}: greatest difference {error:.1e} of the spread")

    patcher = comfy.sd.load_diffusion_model_state_dict({k: v.clone() for k, v in model_file.items()})
    print(type(patcher.model).__name__, type(patcher.model.model_sampling).__mro__[1:3], patcher.model.latent_format)
    ours = MMDiT().eval()
    print(ours.load_state_dict({k: v.float() for k, v in model_file.items()}))
    sizes = {k.removeprefix("context."): len(v) for k, v in conditions.items() if k.startswith("context.")} or {
        "who": 5
    }
    tables = Conditions(sizes)
    if conditions:
        tables.load_state_dict({k: v.float() for k, v in conditions.items()})
    with torch.no_grad():
        context, pooled = tables(torch.tensor([[i % n for n in sizes.values()] for i in range(2)]))
        comfy.model_management.load_models_gpu([patcher])
        for rows, columns in ((16, 16), (8, 8), (24, 16)):
            x, sigma = torch.randn(2, 16, rows, columns), torch.tensor([0.9, 0.2])
            core = patcher.model.diffusion_model.float()
            theirs = core(x, sigma * 1000, context=context, y=pooled)
            report(f"velocity {rows}x{columns}", ours(x, sigma, context, pooled), theirs, 2e-4)
            denoised = patcher.model.apply_model(x, sigma, c_crossattn=context, y=pooled)
            mine = x - sigma.view(-1, 1, 1, 1) * ours(x, sigma, context, pooled)
            report(f"apply_model {rows}x{columns}", mine, denoised.float(), 3e-2)

        vae = comfy.sd.VAE(sd={k: v.clone() for k, v in vae_file.items()})
        net = Autoencoder().eval()
        net.load_state_dict({k: v.float() for k, v in vae_file.items() if not k.startswith("vae_")}, strict=False)
        print("VAE", type(vae.first_stage_model).__name__, vae.latent_channels, vae.vae_dtype)
        from tools.portraits import draw_portraits

        picture = draw_portraits([1, 2], [1, 2]).pictures
        latent = vae.encode(picture.movedim(1, -1))
        seen = patcher.model.process_latent_in(latent.float())
        mine = net.taesd_encoder(picture)
        report("encode, as the model sees it", mine, seen, 5e-2)
        print(f"latent mean {seen.mean():.3f} std {seen.std():.3f}; scale {SCALE} shift {SHIFT}")
        back = vae.decode(patcher.model.process_latent_out(mine)).movedim(-1, 1).float()
        report("decode", net.decode(mine).clamp(0, 1), back, 5e-2)
        noise = torch.randn(2, 16, 16, 16)
        conds = [[[context, {"pooled_output": pooled}]], [[context.flip(0), {"pooled_output": pooled.flip(0)}]]]
        drawn = comfy.sample.sample(
            patcher, noise, 4, 2.0, "euler", "simple", *conds, torch.zeros_like(noise), denoise=1.0, seed=1,
            disable_pbar=True,
        )  # fmt: skip
        print("sampled", tuple(drawn.shape), "finite", bool(drawn.isfinite().all()))
        failures += not bool(drawn.isfinite().all())
    print("FAILED" if failures else "all equal")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
