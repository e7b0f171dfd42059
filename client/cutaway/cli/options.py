"""Options shared by subcommands; names, ranges, choices and texts are those of the contract."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import cutaway
from cutaway.cli import codes
from cutaway.cli.console import reason, say
from cutaway.contract import limits
from cutaway.contract.errors import invalid_option
from cutaway.contract.limits import OPTIONS, Option
from cutaway.contract.options import parse_options

FILE, FOLDER = click.Path(path_type=Path, dir_okay=False), click.Path(path_type=Path)
ABOVE_0 = click.FloatRange(min=0, min_open=True)
SPECS = "huggingface[:MODEL], replicate[:MODEL], space:OWNER/NAME"

# Whoever types a command wants what the picture shows rather than a refusal because nobody is in it.
AUTO = {"subject": replace(OPTIONS["subject"], default="auto")} if "auto" in OPTIONS["subject"].choices else {}


def command(*params: click.Parameter) -> Callable[[Callable[..., Any]], click.Command]:
    """A subcommand with these parameters; its function takes the context, and returns an exit code or a coroutine."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        def invoke(context: click.Context, /, **given: Any) -> Any:
            try:
                done = function(context, **given)
                return asyncio.run(done) if asyncio.iscoroutine(done) else done
            except KeyboardInterrupt:
                return codes.INTERRUPTED

        shown: Any = {"help": function.__doc__, "epilog": codes.EPILOG, "params": list(params)}
        return click.Command(function.__name__, callback=click.pass_context(invoke), **shown)

    return decorate


def option(*names: str, help: str, **more: Any) -> click.Option:
    return click.Option(names, help=help, show_default=str(more.get("default")) not in ("None", "False"), **more)


def _as(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda _context, _parameter, value: None if value is None else kind(value)


def _split(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str]:
    return [each.strip() for value in values for each in value.split(",")]


_URL = "grpc://HOST:8001 or http://HOST:8000, grpcs:// or https:// with TLS; again, or with commas, for equal ones."
_TIMEOUTS = f"[default: {limits.PROCESSING_TIMEOUT_S:g}, with --fallback {limits.FALLBACK_TIMEOUT_S:g}]"
_REPEATS = f"Repeats where that can help [default: {limits.RETRIES}]."
_VARIABLE = {"multiple": True, "envvar": codes.URL_VARIABLE, "show_envvar": True, "default": [limits.DEFAULT_URL]}
_HOSTED = f"Hosted models where no server of yours serves, in this order: {SPECS}; again, or with commas."

JSON = option("--json", is_flag=True, help="One JSON object per line on standard output.")
QUIET = option("--quiet", is_flag=True, help="Say nothing but what failed.")
OVERWRITE = option("--overwrite", "--force", is_flag=True, help="Make anew what is there, and replace it.")
JOBS = option("--jobs", type=click.IntRange(min=1), default=limits.CUT_MANY_JOBS, help="Pictures in flight at once.")
IMAGES = (click.Argument(["images"], nargs=-1, required=True, metavar="IMAGE..."), JOBS, QUIET, JSON)
TIMEOUT = option("--timeout-s", type=ABOVE_0, help=f"Seconds for a picture, all included {_TIMEOUTS}.")
CLIENT = (
    option("--url", "urls", callback=_split, help=_URL, **_VARIABLE),
    TIMEOUT,
    option("--ca-file", "tls", type=FILE, callback=_as(cutaway.Tls), help="Trust only these authorities (PEM)."),
    option("--retries", "retry", type=click.IntRange(min=0), callback=_as(cutaway.RetryPolicy), help=_REPEATS),
    option("--cache", type=FOLDER, callback=_as(cutaway.ResultCache), help="Folder of answers to reuse."),
    option("--fit/--no-fit", default=True, help="Send a smaller copy of a picture that is too large."),
    option("--max-decompression-ratio", type=ABOVE_0, envvar=codes.RATIO_VARIABLE, show_envvar=True, help="Allowed."),
)
FALLBACK = partial(option, "--fallback", multiple=True, metavar="SPEC", callback=_split, help=_HOSTED)
NONCOMMERCIAL = option("--accept-noncommercial", is_flag=True, help="Weights not for commercial use are all right.")


def results(folder: str, names: str) -> list[click.Parameter]:
    """The arguments and options of subcommands that write a file per picture."""
    where = f"Folder for what is made, as {names}; of one picture also a file, or - for standard output."
    return [option("-o", "--output-dir", type=FOLDER, default=folder, help=where), OVERWRITE, *IMAGES]


def table(names: Iterable[str] = OPTIONS, rows: Mapping[str, Option] = OPTIONS | AUTO) -> list[click.Option]:
    """These rows of a table of options."""
    made = []
    for row in map(rows.__getitem__, names):
        flag, text, bounds = f"--{row.name.replace('_', '-')}", row.help, (row.minimum, row.maximum)
        kind: Any = None
        match row.kind:
            case "choice":
                kind = click.Choice(row.choices)
            case "int" | "float":
                kind = (click.IntRange if row.kind == "int" else click.FloatRange)(*bounds)  # type: ignore[arg-type]
            case "bool":
                flag = f"{flag}/--no-{flag[2:]}"
            case _:
                text = f"{text} ({row.allowed})"
        made.append(option(flag, row.name, type=kind, default=row.default, help=text))
    return made


def given_options(context: click.Context, names: Iterable[str] = OPTIONS, **more: Any) -> dict[str, Any]:
    """The given options of the table and `more`, checked; others have the server's defaults."""
    is_given = {name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    given = {name: context.params[name] for name in names if name in is_given or name in AUTO} | more
    # Lists come as JSON or, which is easier to type, with commas and semicolons.
    for name, form in (("select", "[{}]"), ("boxes", "[[{}]]")):
        if name in given and not given[name].lstrip().startswith("["):
            given[name] = form.format(given[name].replace(";", "],["))
    try:
        parse_options(given)
    except cutaway.InvalidOption as error:
        raise click.UsageError(error.message) from None
    return given


def open_client(context: click.Context, **more: Any) -> cutaway.AsyncClient:
    """The client of the command line."""
    given, upscales = context.params | more, context.command.name == "upscale"
    names = "urls", "timeout_s", "tls", "retry", "cache", "fit", "max_decompression_ratio"
    try:
        fallback = [parse_fallback(each, given["accept_noncommercial"], upscales) for each in given.get("fallback", ())]
        for each in fallback:
            if each.token_variables and not any(map(os.environ.get, each.token_variables)):
                say(f"warning: {each.name}: no token in {' or '.join(each.token_variables)}", err=True)
        arguments = {name: given[name] for name in names if given.get(name) is not None}
        return cutaway.AsyncClient(**arguments, fallback=fallback)
    except (ValueError, ImportError, OSError) as error:
        message: str = getattr(error, "message", reason(error))
        raise click.UsageError(message.replace("accept_noncommercial=True", "--accept-noncommercial")) from None


def parse_fallback(spec: str, accept_noncommercial: bool = False, upscales: bool = False) -> Any:
    """The provider of a specification, or for upscaling; InvalidOption or LicenceNotAccepted where there is none."""
    from cutaway.fallback.huggingface import UPSCALE_MODELS
    from cutaway.providers import HuggingFace, Replicate, Space

    kind, _, name = spec.partition(":")
    providers: dict[str, Any] = {"huggingface": HuggingFace, "replicate": Replicate, "space": Space}
    valid = re.fullmatch(r"([\w.-]+(/[\w.-]+)+(:\w+)?)?", name) and (name or kind != "space")
    if kind not in providers or not valid:
        raise invalid_option("fallback", spec[:100], SPECS)
    given: dict[str, Any] = {"space" if kind == "space" else "model": name} if name else {}
    if upscales and kind == "huggingface":  # the licence of a model for mattes is no reason to refuse
        models = dict.fromkeys(UPSCALE_MODELS, name) if name else UPSCALE_MODELS
        given = {"model": models[4], "upscale_models": models}
    elif upscales:
        given = {"upscale_model": name} if name and kind == "replicate" else given
        given |= {"fn": None, "upscale_fn": "predict"} if kind == "space" else {}
    return providers[kind](**given, accept_noncommercial=accept_noncommercial)
