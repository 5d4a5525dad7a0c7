"""Inputs and outputs of ComfyUI's own nodes in the shipped workflows that only a ComfyUI can run.

As in 0.3.64, 0.8.0 and 0.33.0 alike: of Train LoRA the inputs that lead its list in all three, so that a UI workflow,
which stores widget values by their place, gets the version's own defaults for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

COMBO: list[str] = []  # the choices are the server's


@dataclass(frozen=True)
class HostNode:
    """The parts of a node class that make_workflows reads."""

    required: dict
    RETURN_TYPES: tuple[str, ...]
    RETURN_NAMES: tuple[str, ...] | None = None
    optional: dict | None = None

    def INPUT_TYPES(self) -> dict:
        return {
            "required": {name: (kind, {}) for name, kind in self.required.items()},
            "optional": {name: (kind, {}) for name, kind in (self.optional or {}).items()},
        }


HOST_NODES = {
    "CheckpointLoaderSimple": HostNode({"ckpt_name": COMBO}, ("MODEL", "CLIP", "VAE")),
    "CLIPTextEncode": HostNode({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "ImageScale": HostNode(
        {"image": "IMAGE", "upscale_method": COMBO, "width": "INT", "height": "INT", "crop": COMBO}, ("IMAGE",)
    ),
    "ImageBatch": HostNode({"image1": "IMAGE", "image2": "IMAGE"}, ("IMAGE",)),
    "VAEEncode": HostNode({"pixels": "IMAGE", "vae": "VAE"}, ("LATENT",)),
    "VAEDecode": HostNode({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "EmptyLatentImage": HostNode({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "KSampler": HostNode(
        {
            "model": "MODEL",
            "seed": "INT",
            "steps": "INT",
            "cfg": "FLOAT",
            "sampler_name": COMBO,
            "scheduler": COMBO,
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            "denoise": "FLOAT",
        },
        ("LATENT",),
    ),
    "TrainLoraNode": HostNode(
        {
            "model": "MODEL",
            "latents": "LATENT",
            "positive": "CONDITIONING",
            "batch_size": "INT",
            "grad_accumulation_steps": "INT",
            "steps": "INT",
            "learning_rate": "FLOAT",
            "rank": "INT",
            "optimizer": COMBO,
            "loss_function": COMBO,
            "seed": "INT",
            "training_dtype": COMBO,
            "lora_dtype": COMBO,
        },
        ("LORA_MODEL", "LOSS_MAP", "INT"),  # a MODEL stands before them in 0.8 and earlier
        ("lora", "loss_map", "steps"),
    ),
    "ImageStitch": HostNode(
        {
            "image1": "IMAGE",
            "direction": COMBO,
            "match_image_size": "BOOLEAN",
            "spacing_width": "INT",
            "spacing_color": COMBO,
        },
        ("IMAGE",),
        optional={"image2": "IMAGE"},
    ),
}

# Inputs of Train LoRA that not every version has. An API workflow has to give them; a server ignores unknown ones.
TRAIN_LORA_REST = {
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": True,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}
