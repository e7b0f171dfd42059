"""Hosted models to fall back to: one file per provider, one small base.

>>> from cutaway.providers import HuggingFace, Replicate, Space
>>> fallback = [HuggingFace("briaai/RMBG-1.4", accept_noncommercial=True), Replicate(), Space()]
"""

from __future__ import annotations

from cutaway.providers.answers import Matte, Upscaled
from cutaway.providers.base import Provider
from cutaway.providers.errors import InvalidAnswer, LicenceNotAccepted, ProviderRefused, ProviderUnavailable
from cutaway.providers.huggingface import HuggingFace
from cutaway.providers.model import Model
from cutaway.providers.replicate import Replicate
from cutaway.providers.space import Space

__all__ = [
    "HuggingFace",
    "InvalidAnswer",
    "LicenceNotAccepted",
    "Matte",
    "Model",
    "Provider",
    "ProviderRefused",
    "ProviderUnavailable",
    "Replicate",
    "Space",
    "Upscaled",
]
