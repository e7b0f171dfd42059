"""From the command line's words to a client."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from cutaway.cli.codes import RATIO_VARIABLE, URL_VARIABLE
from cutaway.cli.talking import readable, say
from cutaway.contract.errors import InvalidOption
from cutaway.contract.limits import DEFAULT_URL
from cutaway.contract.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutaway.cache import ResultCache
    from cutaway.client import Client
    from cutaway.providers import Provider
    from cutaway.resilience import RetryPolicy
    from cutaway.transports import Tls


def open_client(given: argparse.Namespace, *, upscales: bool = False) -> Client:
    """The client that the command line asks for; ends the command where that makes no sense.

    Args:
        upscales: the hosted models are wanted for enlarging.
    """
    from cutaway.client import Client

    try:
        return Client(
            urls(given),
            timeout_s=given.timeout_s,
            token=token_of(given),
            headers=headers_of(given),
            tls=tls_of(given),
            retry=_retry(given),
            fallback=_fallback(given, upscales),
            cache=_cache(given),
            max_decompression_ratio=_ratio(given),
        )
    except (ValueError, ImportError) as error:
        refuse(given, getattr(error, "message", str(error)))
    except OSError as error:
        refuse(given, readable(error))


def urls(given: argparse.Namespace) -> list[str]:
    """The servers' addresses: those given, else the environment's, else the default."""
    said = given.url or [os.environ.get(URL_VARIABLE) or DEFAULT_URL]
    return [url.strip() for value in said for url in value.split(",") if url.strip()]


def checked_options(given: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options that were given, checked; ends the command where one makes no sense."""
    options = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    # Lists come as JSON or, which is easier to type, with commas.
    for name, opened, closed in (("select", "[", "]"), ("boxes", "[[", "]]")):
        text = options.get(name)
        if isinstance(text, str) and not text.lstrip().startswith("["):
            options[name] = opened + text.replace(";", "],[") + closed
    try:
        parse_options(options)
    except InvalidOption as error:
        refuse(given, error.message)
    return options


def refuse(given: argparse.Namespace, message: str) -> NoReturn:
    """End with the subcommand's usage line."""
    parser: argparse.ArgumentParser = given.parser
    parser.error(message)


def token_of(given: argparse.Namespace) -> str | None:
    """The token of the variable that was named; that of $CUTAWAY_TOKEN the client finds itself."""
    if given.token_env is None:
        return None
    token = os.environ.get(given.token_env)
    if not token:
        refuse(given, f"--token-env names {given.token_env}, which is not set or empty")
    return token


def headers_of(given: argparse.Namespace) -> dict[str, str]:
    """What --header says."""
    headers = {}
    for line in given.header or ():
        name, colon, value = line.partition(":")
        if not colon:
            refuse(given, "--header takes 'Name: value'")  # the value may be a secret
        headers[name.strip().lower()] = value.strip()
    return headers


def _ratio(given: argparse.Namespace) -> float | None:
    text = os.environ.get(RATIO_VARIABLE)
    if not text:
        return None
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not ratio > 0:
        refuse(given, f"${RATIO_VARIABLE} is not a number above 0: {text!r}")
    return ratio


def tls_of(given: argparse.Namespace) -> Tls | None:
    """The certificates' files that were given."""
    from cutaway.transports import Tls

    files = {name: getattr(given, name) for name in ("ca_file", "cert_file", "key_file")}
    return Tls(**files) if any(files.values()) else None


def _retry(given: argparse.Namespace) -> RetryPolicy | None:
    from cutaway.resilience import RetryPolicy

    return None if given.retries is None else RetryPolicy(retries=given.retries)


def _fallback(given: argparse.Namespace, upscales: bool) -> Sequence[Provider]:
    specs = getattr(given, "fallback", None)
    if not specs:
        return ()
    from cutaway.cli.fallbacks import parse_fallbacks, without_token

    providers = parse_fallbacks(specs, accept_noncommercial=given.accept_noncommercial, upscales=upscales)
    for line in without_token(providers):
        say(f"warning: {line}", sys.stderr)
    return providers


def _cache(given: argparse.Namespace) -> ResultCache | None:
    folder = getattr(given, "cache", None)
    if folder is None:
        return None
    from cutaway.cache import ResultCache

    return ResultCache(folder)
