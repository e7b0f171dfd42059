"""Who sends is the gate's to say: places of streams are shared by callers, on the default way in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from stream.tuning import STREAMS_MAX

from gateway.admission import caller_named
from runtime.server import Server, ServerOptions

FRAME = {"name": "frame", "shape": [64, 64, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 64 * 64 * 3}}

CLIENTS = {
    # One connection each, without TLS: a stream that sends nothing for seconds would lose its place.
    address: httpx.Client(transport=httpx.HTTPTransport(verify=False, local_address=address), timeout=60)
    for address in ("127.0.0.1", "127.0.0.2")
}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(ServerOptions(cache_dir=tmp_path_factory.mktemp("cache"), instances=1)) as running:
        yield running
    for client in CLIENTS.values():
        client.close()


def frame(server: Server, sequence_id: int, sender: str = "127.0.0.1", **parameters: Any) -> str:
    """The code of a frame's answer, "" where it was served, sent from an address of this machine."""
    sequence = {"sequence_id": sequence_id, **parameters}
    head = json.dumps({"parameters": sequence, "inputs": [FRAME], "outputs": [{"name": "report"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    url = f"{server.http_url}/v2/models/stream_pipeline/infer"
    response = CLIENTS[sender].post(url, content=head + bytes(64 * 64 * 3), headers=headers)
    return "" if response.status_code == 200 else str(json.loads(response.json()["error"])["code"])


@pytest.mark.triton
def test_streams_of_one_address_leave_places_for_others(crowded: Server) -> None:
    for stream in range(1, STREAMS_MAX + 1):
        assert frame(crowded, stream, sequence_start=True) == ""
    for claimed in ("ip:192.0.2.1", 7, True):
        assert frame(crowded, 99, sequence_start=True, caller=claimed) == "OVERLOADED"
    assert frame(crowded, 50, "127.0.0.2", sequence_start=True) == ""
    assert frame(crowded, 50, "127.0.0.2") == ""
    # Nobody reaches another one's stream by its number.
    assert frame(crowded, 50, caller="ip:127.0.0.2") == "UNAVAILABLE"
    assert sum(frame(crowded, stream) == "" for stream in range(1, STREAMS_MAX + 1)) == STREAMS_MAX - 1


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "ip:192.0.2.7"),
        ("ipv4:192.0.2.7", "ip:192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]", "ip:2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2::9%5D", "ip:2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "ip:192.0.2.7"),
        ("unix:", "ip:unix:"),
        ("", "ip:"),
    ],
)
def test_callers_by_both_protocols(address: str, caller: str) -> None:
    assert caller_named(address) == caller
