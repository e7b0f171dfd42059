"""``--fallback SPEC``: hosted models by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cutaway.contract.errors import invalid_option

if TYPE_CHECKING:
    from cutaway.providers import Provider

SPECS = "huggingface[:MODEL|:URL], replicate[:MODEL], space:OWNER/NAME[#FUNCTION] or space:URL[#FUNCTION]"


def parse_fallback(spec: str, *, accept: bool = False, upscales: bool = False) -> Provider:
    """The provider that a specification names; its token comes from the environment.

    Args:
        spec: see :data:`SPECS`; a URL is an endpoint of one's own, or a Gradio app.
        accept: weights that are not for commercial use are all right.
        upscales: it is wanted for enlarging, not for mattes.

    Raises:
        InvalidOption: it names none, or LicenceNotAccepted.
    """
    from cutaway.fallback.huggingface import FAL_IDS, UPSCALE_MODELS
    from cutaway.providers import HuggingFace, Model, Replicate, Space

    kind, _, rest = spec.partition(":")
    name, _, function = rest.partition("#")
    given: dict[str, Any] = {"accept_noncommercial": accept}
    if re.match("https?://[^/]", name):
        host = urlsplit(name).hostname or name
        given |= {"base_url": name, "model": Model(host, "not known to Cutaway: ask whoever runs it")}
    elif rest and not re.fullmatch(r"[\w.-]+(/[\w.-]+)+(:\w+)?", name):
        kind = ""
    if kind == "huggingface" and "base_url" in given:
        return HuggingFace(route="endpoint", **given)
    if kind == "huggingface" and upscales:  # what mattes does not count: its licence is no reason to refuse
        models = dict.fromkeys(UPSCALE_MODELS, rest) if rest else UPSCALE_MODELS
        return HuggingFace(models[4], upscale_models=models, **given)
    if kind == "huggingface":
        queued = rest in FAL_IDS or rest.startswith("fal-ai/")
        given |= {"model": rest} if rest else {}
        return HuggingFace(route="fal-ai" if queued else "hf-inference", **given)
    if kind == "replicate" and "base_url" not in given:
        given |= {"upscale_model" if upscales else "model": rest} if rest else {}
        return Replicate(**given)
    if kind == "space" and rest:
        given |= {"fn": None, "upscale_fn": function or "predict"} if upscales else {"fn": function or "png"}
        return Space("owner/name" if "base_url" in given else name, **given)
    raise invalid_option("fallback", spec[:100], SPECS)
