"""The trainable networks, their optimization for inference, and their weights files."""

from dmfnet_fast.errors import require

require("torch", extra="torch")
require("safetensors", extra="torch")

from dmfnet_fast.config import PRESETS, ModelConfig, StudentConfig, preset
from dmfnet_fast.model.denoiser import Denoiser
from dmfnet_fast.model.inference import optimize
from dmfnet_fast.model.network import DMFNet
from dmfnet_fast.model.student import Student
from dmfnet_fast.model.weights import Network, load_model, network_of, save_model

__all__ = [
    "PRESETS",
    "DMFNet",
    "Denoiser",
    "ModelConfig",
    "Network",
    "Student",
    "StudentConfig",
    "load_model",
    "network_of",
    "optimize",
    "preset",
    "save_model",
]
