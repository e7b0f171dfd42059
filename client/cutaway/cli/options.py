"""Options shared by subcommands; names, ranges, choices and texts are those of the contract."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

import cutaway
from cutaway.cli.codes import EPILOG, RATIO_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from cutaway.cli.console import reason, say
from cutaway.contract import limits
from cutaway.contract.errors import invalid_option
from cutaway.contract.limits import OPTIONS, Option
from cutaway.contract.options import parse_options

if TYPE_CHECKING:
    from cutaway.providers import Provider

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path)
ABOVE_0 = click.FloatRange(min=0, min_open=True)


def _token(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    if name and not os.environ.get(name):
        raise click.BadParameter(f"{name}, which is not set or empty")
    return os.environ.get(name or "")


def _headers(_: click.Context, __: click.Parameter, lines: tuple[str, ...]) -> dict[str, str]:
    if not all(":" in line for line in lines):
        raise click.BadParameter("--header takes 'Name: value'")  # what was given may be a secret
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _urls(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str]:
    return [url.strip() for value in values for url in value.split(",") if url.strip()]


def command(*params: click.Parameter) -> Callable[[Callable[..., int]], click.Command]:
    """A subcommand with these parameters, in this order in the help; it takes its context and returns an exit code."""
    return lambda function: click.command(epilog=EPILOG, params=list(params))(click.pass_context(function))


def option(*names: str, help: str, **more: Any) -> click.Option:
    return click.Option(names, help=help, show_default=str(more.get("default")) not in ("None", "False"), **more)


JSON = option("--json", is_flag=True, help="One JSON object per line on standard output.")
QUIET = option("--quiet", is_flag=True, help="Say nothing but what failed.")
VERBOSE = option("-v", "--verbose", is_flag=True, help="Tell of requests, failures and repeats.")
OVERWRITE = option("--overwrite", "--force", is_flag=True, help="Make anew what is there, and replace it.")
JOBS = option("--jobs", type=click.IntRange(min=1), default=limits.CUT_MANY_JOBS, help="Pictures in flight at once.")
IMAGES = (click.Argument(["images"], nargs=-1, required=True, metavar="IMAGE..."), JOBS, QUIET, JSON)
OF_CLIENTS = (
    option("--retries", type=click.IntRange(min=0), help=f"Repeats where that can help [default: {limits.RETRIES}]."),
    option("--cache", type=FOLDER, help="Keep answers in this folder, and take them from there."),
    option("--fit/--no-fit", default=True, help="Send a smaller copy of a picture that is too large."),
    option("--max-decompression-ratio", type=ABOVE_0, envvar=RATIO_VARIABLE, show_envvar=True, help="The server's."),
)


def timeout(default: str) -> click.Option:
    return option("--timeout-s", type=ABOVE_0, help=f"Seconds for a picture, all included [default: {default}].")


def server(*, hosted: bool = False, client: bool = True) -> list[click.Option]:
    """The options of the server and its connection."""
    url = "grpc://HOST:8001 or http://HOST:8000, grpcs:// or https:// with TLS; again, or with commas, for equal ones."
    shared = {"multiple": True, "envvar": URL_VARIABLE, "show_envvar": True, "default": [limits.DEFAULT_URL]}
    bearer = f"Variable that holds the bearer token [default: {TOKEN_VARIABLE}]."
    seconds = f"{limits.PROCESSING_TIMEOUT_S:g}{f', with --fallback {limits.FALLBACK_TIMEOUT_S:g}' if hosted else ''}"
    return [
        option("--url", "urls", callback=_urls, help=url, **shared),
        timeout(seconds),
        option("--token-env", "token", metavar="VARIABLE", callback=_token, help=bearer),
        option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", callback=_headers, help="Sent always."),
        option("--ca-file", type=FILE, help="Trust only what these authorities signed (PEM)."),
        option("--cert-file", type=FILE, help="The client's own certificate (PEM)."),
        option("--key-file", type=FILE, help="The certificate's key (PEM)."),
        *(OF_CLIENTS if client else ()),
        VERBOSE,
    ]


def fallback(*, required: bool = False) -> list[click.Option]:
    """The options of hosted models."""
    text = "Hosted models where no server of yours serves, in this order: huggingface[:MODEL], replicate[:MODEL], "
    text += "space:OWNER/NAME; again, or with commas. Pictures leave your network."
    return [
        option("--fallback", multiple=True, required=required, metavar="SPEC", help=text),
        option("--accept-noncommercial", is_flag=True, help="Weights not for commercial use are all right."),
    ]


def results(folder: str, names: str) -> list[click.Parameter]:
    """The arguments and options of subcommands that write a file per picture."""
    where = f"Folder for what is made, as {names}; of one picture also a file, or - for standard output."
    return [option("-o", "--output-dir", type=FOLDER, default=folder, help=where), OVERWRITE, *IMAGES]


def table(names: Iterable[str], rows: Mapping[str, Option] = OPTIONS) -> list[click.Option]:
    """These rows of a table of options."""
    return [_from_row(rows[name]) for name in names]


def _from_row(row: Option) -> click.Option:
    flag, text = f"--{row.name.replace('_', '-')}", row.help
    kind: Any = None
    if row.kind == "choice":
        kind = click.Choice(row.choices)
    elif row.kind == "int" and row.minimum is not None and row.maximum is not None:
        kind = click.IntRange(int(row.minimum), int(row.maximum))
    elif row.kind == "float":
        kind = click.FloatRange(row.minimum, row.maximum)
    elif row.kind == "bool":
        flag = f"{flag}/--no-{flag[2:]}"
    else:
        text = f"{text} ({row.allowed})"
    return option(flag, row.name, type=kind, default=row.default, help=text)


def given_options(context: click.Context, names: Iterable[str] = OPTIONS) -> dict[str, Any]:
    """The given options of the table, checked; others have the server's defaults."""
    given: dict[str, Any] = {}
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            given[name] = value = context.params[name]
            # Lists come as JSON or, which is easier to type, with commas and semicolons.
            opened, closed = {"ids": ("[", "]"), "boxes": ("[[", "]]")}.get(OPTIONS[name].kind, ("", ""))
            if opened and not value.lstrip().startswith("["):
                given[name] = opened + value.replace(";", "],[") + closed
    try:
        parse_options(given)
    except cutaway.InvalidOption as error:
        raise click.UsageError(error.message) from None
    return given


def reached(context: click.Context, *names: str) -> dict[str, Any]:
    """The connection's arguments of clients and streams: those of these names, and `tls`."""
    files = {name: context.params.get(name) for name in ("ca_file", "cert_file", "key_file")}
    given = {name: context.params[name] for name in names if context.params.get(name) is not None}
    return given | ({"tls": cutaway.Tls(**files)} if any(files.values()) else {})


def open_client(context: click.Context, *, upscales: bool = False, **arguments: Any) -> cutaway.AsyncClient:
    """The client of the command line."""
    given = context.params
    names = ("urls", "timeout_s", "token", "headers", "max_decompression_ratio", "fit")
    specs = [spec.strip() for value in given.get("fallback", ()) for spec in value.split(",")]
    try:
        arguments = reached(context, *names) | arguments
        if given.get("retries") is not None:
            arguments["retry"] = cutaway.RetryPolicy(retries=given["retries"])
        if given.get("cache") is not None:
            arguments["cache"] = cutaway.ResultCache(given["cache"])
        accept = given.get("accept_noncommercial", False)
        arguments["fallback"] = [parse_fallback(spec, accept=accept, upscales=upscales) for spec in specs]
        for provider in arguments["fallback"]:
            if provider.token_variables and not any(map(os.environ.get, provider.token_variables)):
                variables = " or ".join(f"${name}" for name in provider.token_variables)
                say(f"warning: {provider.name}: no token in {variables}; it will probably refuse", err=True)
        return cutaway.AsyncClient(**arguments)
    except (ValueError, ImportError, OSError) as error:
        message: str = getattr(error, "message", reason(error))
        raise click.UsageError(message.replace("accept_noncommercial=True", "--accept-noncommercial")) from None


SPECS = "huggingface[:MODEL|:URL], replicate[:MODEL], space:OWNER/NAME[#FUNCTION] or space:URL[#FUNCTION]"


def parse_fallback(spec: str, *, accept: bool = False, upscales: bool = False) -> Provider:
    """The provider of a specification, for mattes or upscaling; `accept` allows non-commercial weights.

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
