"""``--fallback SPEC``: hosted models by name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cutaway.contract.errors import InvalidOption

if TYPE_CHECKING:
    from cutaway.providers import Model, Provider

SPECS = "huggingface[:MODEL|:URL], replicate[:MODEL], space:OWNER/NAME[#FUNCTION] or space:URL[#FUNCTION]"


_NAME = re.compile(r"[\w.-]+(/[\w.-]+)+")


def parse_fallbacks(
    specs: Sequence[str], *, accept_noncommercial: bool = False, upscales: bool = False
) -> list[Provider]:
    """The providers that were named, in that order; each value may hold several, with commas.

    Raises:
        InvalidOption: see :func:`parse_fallback`.
    """
    return [
        parse_fallback(spec.strip(), accept_noncommercial=accept_noncommercial, upscales=upscales)
        for value in specs
        for spec in value.split(",")
    ]


def parse_fallback(spec: str, *, accept_noncommercial: bool = False, upscales: bool = False) -> Provider:
    """The provider that a specification names; tokens come from the environment.

    - ``huggingface``, ``huggingface:owner/model``: by the router; ``huggingface:https://…`` an endpoint of one's own.
    - ``replicate``, ``replicate:owner/name``, ``replicate:owner/name:version``.
    - ``space:owner/name``, ``space:https://…``: a Gradio app; ``#name`` after it names its function.

    Args:
        spec: as above.
        accept_noncommercial: weights that are not for commercial use are all right.
        upscales: it is wanted for enlarging, not for mattes.

    Raises:
        InvalidOption: it names no provider, or LicenceNotAccepted.
    """
    name, _, rest = spec.partition(":")
    try:
        if name == "huggingface":
            return _huggingface(rest, accept_noncommercial, upscales)
        if name == "replicate":
            return _replicate(rest, accept_noncommercial, upscales)
        if name == "space" and rest:
            return _space(rest, accept_noncommercial, upscales)
    except InvalidOption as error:
        if error.details.get("name") != "accept_noncommercial":
            raise
        raise _not_accepted(spec, error) from None
    raise _names_nothing(spec)


def without_token(providers: Sequence[Provider]) -> list[str]:
    """A line for each provider that needs a token and finds none."""
    return [
        f"{provider.name}: no token in {' or '.join(f'${name}' for name in provider.token_variables)}; "
        "it will probably refuse"
        for provider in providers
        if provider.token_variables and not any(os.environ.get(name) for name in provider.token_variables)
    ]


def _huggingface(rest: str, accepted: bool, upscales: bool) -> Provider:
    from cutaway.providers import HuggingFace
    from cutaway.providers.huggingface import FAL_IDS, UPSCALE_MODELS

    if _is_url(rest):
        return HuggingFace(_somebodys(rest), route="endpoint", base_url=rest, accept_noncommercial=accepted)
    if rest and not _NAME.fullmatch(rest):
        raise _names_nothing(f"huggingface:{rest}")
    if upscales:
        # What mattes does not count here: its licence is no reason to refuse.
        models = dict.fromkeys(UPSCALE_MODELS, rest) if rest else None
        return HuggingFace(rest or UPSCALE_MODELS[4], upscale_models=models, accept_noncommercial=accepted)
    if not rest:
        return HuggingFace(accept_noncommercial=accepted)
    queued = rest in FAL_IDS or rest.startswith("fal-ai/")
    return HuggingFace(rest, route="fal-ai" if queued else "hf-inference", accept_noncommercial=accepted)


def _replicate(rest: str, accepted: bool, upscales: bool) -> Provider:
    from cutaway.providers import Replicate

    if not rest:
        return Replicate(accept_noncommercial=accepted)
    if upscales:
        return Replicate(upscale_model=rest, accept_noncommercial=accepted)
    return Replicate(rest, accept_noncommercial=accepted)


def _space(rest: str, accepted: bool, upscales: bool) -> Provider:
    from cutaway.providers import Space

    where, _, function = rest.partition("#")
    base_url = where if _is_url(where) else None
    model = _somebodys(where) if base_url else None
    name = "owner/name" if base_url else where
    if upscales:
        upscale_fn = function or "predict"
        return Space(
            name, fn=None, upscale_fn=upscale_fn, base_url=base_url, model=model, accept_noncommercial=accepted
        )
    if function:
        return Space(name, fn=function, base_url=base_url, model=model, accept_noncommercial=accepted)
    return Space(name, base_url=base_url, model=model, accept_noncommercial=accepted)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _somebodys(url: str) -> Model:
    from cutaway.providers import Model

    return Model(urlsplit(url).hostname or url, "not known to Cutaway: ask whoever runs it")


def _names_nothing(spec: str) -> InvalidOption:
    return InvalidOption(
        f"{spec[:100]!r} names no hosted model: allowed is {SPECS}.",
        details={"name": "fallback", "value": spec[:100], "allowed": SPECS},
    )


def _not_accepted(spec: str, error: InvalidOption) -> InvalidOption:
    """In the command's own words."""
    model, licence = error.details.get("model", spec), error.details.get("licence", "")
    return type(error)(
        f"The weights of {model} may not be used commercially ({licence}). "
        "Add --accept-noncommercial if your use is not commercial, or if you hold a licence.",
        details=error.details,
    )
