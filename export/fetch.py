"""`python -m export fetch PROFILE`: the released weights of a profile, each checked, into one folder."""

import argparse
import os
import sys
from pathlib import Path

import huggingface_hub

from export.catalog import BUNDLED, load_catalog
from export.fetching import DEFAULT_HUB, FetchError, Settings, check_address, fetch_weights, writing
from export.listing import CHECKOUT, add_catalog_argument
from export.locking import alone_in

DEFAULT_OUTPUT = CHECKOUT / ".cache" / "weights"
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch the released weights of a profile: BiRefNet's from the Hugging Face Hub, YOLOv8's from Ultralytics' "
        "releases. Every file is held to a SHA-256; a broken download goes on where it stopped."
    )
    parser.epilog = (
        "Environment: HF_TOKEN for repositories that want one; HF_ENDPOINT, another address of the Hub; HTTPS_PROXY, "
        "SSL_CERT_FILE. A token goes to the Hub alone, never to --mirror. `python -m export list` shows the profiles "
        "and their licences."
    )
    parser.add_argument("profile", metavar="PROFILE", help=f"one of {', '.join(load_catalog().profiles)}")
    add_catalog_argument(parser)
    parser.add_argument("--detector", choices="nsmlx", metavar="SIZE", help="another YOLOv8 size: n, s, m, l or x")
    parser.add_argument("--from", dest="folder", metavar="DIR", type=Path, help="take the files from here; no network")
    parser.add_argument(
        "--mirror", metavar="URL", help="an https address with the paths of huggingface.co and github.com"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="folder for the files (default: .cache/weights)",
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """From the command line and the environment.

    Raises:
        FetchError: an address is not safe.
    """
    if arguments.folder is not None:
        return Settings(arguments.output, arguments.folder)
    if arguments.mirror is not None:
        check_address(arguments.mirror, "--mirror")
        return Settings(arguments.output, hub=arguments.mirror, releases=arguments.mirror)
    hub = os.environ.get("HF_ENDPOINT") or DEFAULT_HUB
    check_address(hub, "HF_ENDPOINT")
    token = os.environ.get("HUGGINGFACE_TOKEN", "").strip() or huggingface_hub.get_token()
    return Settings(arguments.output, hub=hub, token=token)


def run(arguments: argparse.Namespace) -> int:
    catalog = load_catalog(arguments.catalog)
    profile = catalog.profile(arguments.profile)
    detector = catalog.detector(arguments.detector) if arguments.detector else profile.detector
    wanted = [each for each in (profile.matte, detector) if each.source != BUNDLED]
    if not wanted:
        print(f"{profile.name} is bundled in export/weights/{profile.name}: nothing to fetch")
        return 0
    settings = settings_of(arguments)
    huggingface_hub.logging.set_verbosity_error()  # what goes wrong is said in one line, at the end
    busy = FetchError(
        f"another fetch is writing to {settings.output}; wait for it, or choose another folder: --output DIR"
    )
    try:
        with writing(settings.output), alone_in(settings.output, busy):
            for weights in wanted:
                fetch_weights(weights, settings)
    except KeyboardInterrupt:
        print("export: stopped; run it again to go on from here", file=sys.stderr)
        return INTERRUPTED
    return 0
