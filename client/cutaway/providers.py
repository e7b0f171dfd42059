"""Hosted models to fall back to: ``Client(url, fallback=[Replicate(), Space()])``."""

from cutaway.fallback.answers import (
    InvalidAnswer,
    LicenceNotAccepted,
    Matte,
    ProviderRefused,
    ProviderUnavailable,
    Upscaled,
)
from cutaway.fallback.base import Model, Provider
from cutaway.fallback.huggingface import HuggingFace
from cutaway.fallback.replicate import Replicate
from cutaway.fallback.space import Space

__all__ = ["HuggingFace", "InvalidAnswer", "LicenceNotAccepted", "Matte", "Model", "Provider", "ProviderRefused"]
__all__ += ["ProviderUnavailable", "Replicate", "Space", "Upscaled"]
