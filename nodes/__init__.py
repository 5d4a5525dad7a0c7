"""The ComfyUI surface: thin V1 classes. Ids, input names and outputs are a public contract."""

from . import host
from .denoisers import LoadDenoiser
from .metrics import Inspect, Metrics
from .models import ApplyTrainedLora, CombineDenoisers, DenoiserFromModel, SeedTraining
from .protect import ObjectiveSettings, Protect
from .purify import DiffusionPurify

NODE_CLASS_MAPPINGS = {
    "AntiPureLoadDenoiser": LoadDenoiser,
    "AntiPureDenoiserFromModel": DenoiserFromModel,
    "AntiPureCombineDenoisers": CombineDenoisers,
    "AntiPureProtect": Protect,
    "AntiPureObjective": ObjectiveSettings,
    "AntiPureDiffusionPurify": DiffusionPurify,
    "AntiPureMetrics": Metrics,
    "AntiPureInspect": Inspect,
    "AntiPureSeedTraining": SeedTraining,
    "AntiPureApplyTrainedLora": ApplyTrainedLora,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "AntiPureLoadDenoiser": "Load Pixel Denoiser",
    "AntiPureDenoiserFromModel": "Denoiser from Model",
    "AntiPureCombineDenoisers": "Combine Denoisers",
    "AntiPureProtect": "AntiPure Protect",
    "AntiPureObjective": "AntiPure Objective",
    "AntiPureDiffusionPurify": "Diffusion Purify",
    "AntiPureMetrics": "Image Metrics",
    "AntiPureInspect": "Inspection Sheet",
    "AntiPureSeedTraining": "Seed Training",
    "AntiPureApplyTrainedLora": "Apply Trained LoRA",
}

host.register_model_folder()
