"""The ComfyUI surface: thin V1 classes. Ids, input names and outputs are a public contract."""

import logging
from typing import Any

from ..methods import requirements
from . import host, model_folders
from .defence_report import DefenceReport
from .demo_model import LoadDemoModel
from .denoisers import LoadDenoiser
from .encoders import LoadVisualEncoder
from .face_labels import FaceLabelsNode
from .face_metrics import FaceMetrics
from .generators import DisruptProtect, EditFace, LoadGenerator, ProceduralFaces
from .lora_patch import LoadLoraPatch, LoraPatchApply, SaveLoraPatch, TrainLoraPatch, TrainModelPatch
from .metrics import Inspect, Metrics
from .missing import naming_requirements
from .models import ApplyTrainedLora, CombineDenoisers, DenoiserFromModel, SeedTraining
from .protect import ObjectiveSettings, Protect
from .purify import DiffusionPurify
from .quality import QualityMetrics
from .report import ShowReport
from .robustness import RobustnessReport
from .save import SavePicture
from .set_metrics import SetMetrics
from .targets import VaeTargetsNode
from .transform import TransformPictures
from .vae_metrics import VaeMetrics

NODE_CLASS_MAPPINGS: dict[str, Any] = {
    "AntiPureLoadDenoiser": LoadDenoiser,
    "AntiPureDenoiserFromModel": DenoiserFromModel,
    "AntiPureCombineDenoisers": CombineDenoisers,
    "AntiPureProtect": Protect,
    "AntiPureObjective": ObjectiveSettings,
    "AntiPureDiffusionPurify": DiffusionPurify,
    "AntiPureTransform": TransformPictures,
    "AntiPureMetrics": Metrics,
    "AntiPureSetMetrics": SetMetrics,
    "AntiPureFaceMetrics": FaceMetrics,
    "AntiPureQualityMetrics": QualityMetrics,
    "AntiPureInspect": Inspect,
    "AntiPureRobustnessReport": RobustnessReport,
    "AntiPureSeedTraining": SeedTraining,
    "AntiPureApplyTrainedLora": ApplyTrainedLora,
    "AntiPureLoadGenerator": LoadGenerator,
    "AntiPureProceduralFaces": ProceduralFaces,
    "AntiPureEditFace": EditFace,
    "AntiPureDisruptProtect": DisruptProtect,
    "AntiPureTrainLoraPatch": TrainLoraPatch,
    "AntiPureTrainModelPatch": TrainModelPatch,
    "AntiPureLoraPatchApply": LoraPatchApply,
    "AntiPureSaveLoraPatch": SaveLoraPatch,
    "AntiPureLoadLoraPatch": LoadLoraPatch,
    "AntiPureDefenceReport": DefenceReport,
    "AntiPureFaceLabels": FaceLabelsNode,
    "AntiPureLoadVisualEncoder": LoadVisualEncoder,
    "AntiPureVaeMetrics": VaeMetrics,
    "AntiPureVaeTargets": VaeTargetsNode,
    "AntiPureLoadDemoModel": LoadDemoModel,
    "AntiPureSave": SavePicture,
    "AntiPureShowReport": ShowReport,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "AntiPureLoadDenoiser": "Load Pixel Denoiser",
    "AntiPureDenoiserFromModel": "Denoiser from Model",
    "AntiPureCombineDenoisers": "Combine Denoisers",
    "AntiPureProtect": "AntiPure Protect",
    "AntiPureObjective": "AntiPure Objective",
    "AntiPureDiffusionPurify": "Diffusion Purify",
    "AntiPureTransform": "Transform Pictures",
    "AntiPureMetrics": "Image Metrics",
    "AntiPureSetMetrics": "Set Metrics",
    "AntiPureFaceMetrics": "Face Metrics",
    "AntiPureQualityMetrics": "Quality Metrics",
    "AntiPureInspect": "Inspection Sheet",
    "AntiPureRobustnessReport": "Robustness Report",
    "AntiPureSeedTraining": "Seed Training",
    "AntiPureApplyTrainedLora": "Apply Trained LoRA",
    "AntiPureLoadGenerator": "Load Generator",
    "AntiPureProceduralFaces": "Procedural Faces",
    "AntiPureEditFace": "Edit Face",
    "AntiPureDisruptProtect": "Disrupt Protect",
    "AntiPureTrainLoraPatch": "Train LoRA Patch",
    "AntiPureTrainModelPatch": "Train Model Patch",
    "AntiPureLoraPatchApply": "LoRA Patch Apply",
    "AntiPureSaveLoraPatch": "Save LoRA Patch",
    "AntiPureLoadLoraPatch": "Load LoRA Patch",
    "AntiPureDefenceReport": "Defence Report",
    "AntiPureFaceLabels": "Face Labels",
    "AntiPureLoadVisualEncoder": "Load Visual Encoder",
    "AntiPureVaeMetrics": "VAE Metrics",
    "AntiPureVaeTargets": "VAE Targets",
    "AntiPureLoadDemoModel": "Load Demo Model",
    "AntiPureSave": "Save Protected Picture",
    "AntiPureShowReport": "Show Report",
}

model_folders.register_model_folders()
for _node in NODE_CLASS_MAPPINGS.values():
    naming_requirements(_node)
if host.inside_comfyui() and (_missing := requirements.missing()):
    logging.getLogger(__name__).warning("AntiPure: %s", requirements.sentence(_missing))
