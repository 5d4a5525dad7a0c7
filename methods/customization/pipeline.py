"""A local Stable Diffusion folder as a `Denoiser`, to be customized and to generate: DreamBooth with a LoRA.

Outside ComfyUI (benchmarks, scripts); inside it the host's own models serve. Only local files are read, and of weights
only safetensors: nothing is downloaded, no pickle is opened, no code of the folder's is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture import check_finite, check_layers, check_size
from ..diffusion.checkpoints import DTYPES, check_family, rename_old_attention
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..files import find_weights, read_json, reason, weight_names
from ..gradients.differentiation import saved_bytes
from ..pictures import pad_reflect, random_stream, round_up
from ..precision import autocast
from ..progress import Progress, silent
from .dreambooth_lora import CustomizationSettings

# DreamBooth-LoRA as it is commonly trained: attention only, all timesteps, whole pictures.
PIPELINE_SETTINGS = CustomizationSettings(
    rank=16, steps=400, batch=1, learning_rate=1e-4, low_share=0.0, convolutions=False, resize=True
)
CLASS = "StableDiffusionPipeline"
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


class PipelineDenoiser(Denoiser):
    """A diffusers `StableDiffusionPipeline` under one prompt.

    pipeline: epsilon- or v-predicting. prompt: the instance prompt ("a photo of sks person"), without guidance.
    dtype: autocast type of the U-Net (float32: none).
    `encode` gives the mean of the VAE's posterior, scaled; a tile is the model's native side.
    """

    clip_x0 = False
    latent = True

    def __init__(self, pipeline, prompt: str, dtype: torch.dtype = torch.float32):
        self.pipeline, self.prompt, self.dtype = pipeline, prompt, dtype
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)
        self.kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
        if self.kind not in ("epsilon", "v_prediction"):
            raise AntiPureError(f"The pipeline predicts '{self.kind}'; epsilon and v_prediction can be used.")
        device = next(pipeline.unet.parameters()).device
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.float().to(device)
        factor = pipeline.vae_scale_factor
        self.multiple = factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        self.tile = round_up(pipeline.unet.config.sample_size * factor, self.multiple)
        self._bytes: float | None = None
        with torch.no_grad():
            tokens = pipeline.tokenizer(
                prompt,
                padding="max_length",
                max_length=pipeline.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            self.embedding = pipeline.text_encoder(tokens.input_ids.to(device))[0].float()

    @property
    def network(self) -> nn.Module:
        return self.pipeline.unet

    def encode(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        padded = pad_reflect(pixels, *(round_up(side, self.multiple) for side in pixels.shape[-2:]))
        latent = vae.encode(padded.to(next(vae.parameters()).dtype)).latent_dist.mode().float()
        return (latent - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        vae = self.pipeline.vae
        z = latent / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
        return vae.decode(z.to(next(vae.parameters()).dtype)).sample.float()

    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        embedding = self.embedding.expand(len(x_t), -1, -1)
        with autocast(x_t.device, self.dtype):
            out = self.pipeline.unet(x_t, t, encoder_hidden_states=embedding).sample.float()
        if self.kind == "epsilon":
            return out, None
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return a.sqrt() * out + (1 - a).sqrt() * x_t, None  # v = sqrt(a) eps - sqrt(1 - a) x0

    def bytes_per_pixel(self) -> float:
        if self._bytes is None:
            side = max(self.multiple, 64)
            with torch.inference_mode(False):
                z = torch.zeros_like(self.encode(torch.zeros(1, 3, side, side, device=self.device)))
                t = torch.zeros(1, dtype=torch.long, device=self.device)
                self._bytes = saved_bytes(lambda z: self.predict(z, t)[0], z, self.network) / side**2
        return self._bytes

    @torch.no_grad()
    def generate(
        self,
        count: int,
        seed: int = 0,
        *,
        steps: int = 30,
        guidance: float = 7.5,
        size: int | None = None,
        prompt: str | None = None,
        progress: Progress = silent,
    ) -> Tensor:
        """`count` pictures of the prompt by the pipeline's own scheduler, with classifier-free guidance.

        Each picture has its own stream, so more pictures do not change the first ones. size: side (None: native).
        prompt: another one than the instance prompt. Returns count×3×size×size in 0..1, on the CPU.
        """
        if count < 1 or steps < 1:
            raise AntiPureError(f"{count} pictures in {steps} steps: at least 1 of both is needed.")
        size = self.tile if size is None else size
        self.pipeline.set_progress_bar_config(disable=True)
        pictures = []
        for i in range(count):
            found = self.pipeline(
                self.prompt if prompt is None else prompt,
                height=size,
                width=size,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=random_stream(seed, i),
                output_type="pt",
            )
            pictures.append(found.images.float().cpu().clamp(0, 1))
            progress(i + 1, count)
        return torch.cat(pictures)


def load_pipeline(
    folder: str | Path, prompt: str, *, device: torch.device | str = "cpu", precision: str = "fp32"
) -> PipelineDenoiser:
    """A Stable Diffusion folder (`model_index.json`, `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`).

    prompt: the instance prompt. precision: "fp32", or "bf16"/"fp16" for autocast inside the U-Net.
    Without a safety checker: pictures stay on this machine. Raises `AntiPureError` naming the folder when it holds
    something else, is incomplete, or its weights are no safetensors. Shards and variants such as fp16 are read, too.
    """
    folder = Path(folder)
    if precision not in DTYPES:
        raise AntiPureError(f"The precision '{precision}' is unknown; choose one of {', '.join(DTYPES)}.")
    if not (folder / "model_index.json").is_file():
        raise AntiPureError(f"{folder} is no diffusers pipeline: it has no readable model_index.json.")
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind != CLASS:
        raise AntiPureError(f"{folder} holds a {kind}; customization takes a {CLASS} folder.")
    files, variant = {}, None
    for part, stem in PARTS.items():
        if not any((folder / part).glob("*.safetensors")):
            raise AntiPureError(f"{folder / part} has no safetensors weights; convert the model, pickles are not read.")
        files[part], found = find_weights(folder / part, stem, (".safetensors",))
        variant = variant or found
    try:
        from diffusers import StableDiffusionPipeline

        for part, described in _described(folder).items():
            check_size(described, files[part])
        with torch.inference_mode(False):
            pipeline = StableDiffusionPipeline.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                variant=variant,  # parts that lack it are read in full
                safety_checker=None,
                feature_extractor=None,
                image_encoder=None,
                requires_safety_checker=False,
            )
        check_family({**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__})
        for part in ("unet", "vae"):  # diffusers' own; transformers renames more than can be told here
            _check_complete(getattr(pipeline, part), set().union(*map(weight_names, files[part])))
        for part in PARTS:
            check_finite(getattr(pipeline, part))
        with torch.inference_mode(False):
            pipeline = pipeline.to(device, torch.float32)
    except Exception as error:  # a malformed folder makes diffusers and transformers raise nearly anything
        raise AntiPureError(f"{folder} cannot be read as a {CLASS}: {reason(error)}") from error
    return PipelineDenoiser(pipeline, prompt, DTYPES[precision])


def _described(folder: Path) -> dict[str, nn.Module]:
    """The parts of a pipeline as their configurations describe them, on the meta device: without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = {part: read_json(folder / part / "config.json") for part in PARTS}
    for part, config in configs.items():
        check_layers(config, folder / part)
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
        }


def _check_complete(network: Any, names: set[str]) -> None:
    """Raise `AntiPureError` for a weight that no file held, and that was made up at random."""
    found = dict.fromkeys(names)
    rename_old_attention(network, found)
    missing = next((name for name in network.state_dict() if name not in found), None)
    if missing is not None:
        raise AntiPureError(f"the files of its {type(network).__name__} lack '{missing}'")
