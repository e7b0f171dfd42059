"""`python -m gateway.service`: the HTTP service by itself, beside a Triton that runs already."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import uvicorn

from gateway.service.app import create_app
from gateway.service.keys import new_key
from gateway.service.settings import TIERS_PER_MINUTE, ServiceSettings


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.service", description=__doc__)
    add_options(parser)
    given = parser.parse_args(arguments)
    if given.new_key:
        key, lines = new_key(given.new_key[0], given.new_key[1])
        print(f"key (shown once): {key}\n\nfor the key file:\n{lines}")
        return
    app = create_app(settings_of(given))
    uvicorn.run(
        app, host=given.address, port=given.port, forwarded_allow_ips=given.trusted_proxies, log_level="warning"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The service's options; those that hold secrets come from the environment."""
    add = parser.add_argument_group("HTTP service").add_argument
    add("--address", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=55433, help="(default: %(default)s)")
    add("--triton", default="grpc://127.0.0.1:8001", metavar="URL", help="the Triton to ask (default: %(default)s)")
    add("--triton-metrics", default="", metavar="URL", help="Triton's metrics, which know a GPU's free memory")
    add("--storage", default="memory:", metavar="WHERE", help="a folder, s3://bucket/prefix, or memory: (default)")
    add("--redis", default="", metavar="URL", help="where several gateways share limits and jobs, redis://host:6379")
    add("--keys", type=Path, metavar="FILE", help="API keys, see --new-key")
    add("--keys-required", action="store_true", help="refuse requests without a key of the file")
    add("--new-key", nargs=2, metavar=("TIER", "NAME"), help=f"make a key of {', '.join(TIERS_PER_MINUTE)}, and end")
    add(
        "--image-hosts",
        nargs="*",
        default=[],
        metavar="HOST",
        help="hosts that image_url may name (default: any public)",
    )
    add("--cors", nargs="*", default=[], metavar="ORIGIN", help="origins whose pages may call the service")
    add("--hosted", nargs="*", default=[], help="hosted models for hd-image: huggingface, replicate, space")
    add("--trusted-proxies", default="127.0.0.1", help="whose X-Forwarded-For is believed (default: %(default)s)")


def settings_of(given: argparse.Namespace) -> ServiceSettings:
    return ServiceSettings(
        triton_url=given.triton,
        triton_metrics_url=given.triton_metrics,
        storage=given.storage,
        redis_url=given.redis,
        keys=given.keys,
        keys_required=given.keys_required,
        image_hosts=tuple(given.image_hosts),
        cors_origins=tuple(given.cors),
        hosted=tuple(given.hosted),
        did_key=os.environ.get("CUTAWAY_DID_KEY", ""),
        did_url=os.environ.get("CUTAWAY_DID_URL", ServiceSettings.did_url),
    )


if __name__ == "__main__":
    main()
