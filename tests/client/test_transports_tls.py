"""TLS trusts whom it was told to trust and nobody else, and headers arrive with every request and nowhere else."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cutaway import loop
from cutaway.contract.errors import ServerRefused, ServerUnavailable
from cutaway.transports import Connection, Tls, open_transport
from cutaway.transports.base import InferRequest, parse_address
from cutaway.transports.connection import InsecureTokenWarning
from tritonclient.grpc import service_pb2

from tests.client import peers

WAYS = ["sync", "async"]
SCHEMES = ["grpcs", "https"]
REPORT = struct.pack("<I", 2) + b"{}"


def infer(
    url: str, way: str, tls: Tls | None = None, headers: Mapping[str, str] | None = None, **of_call: str
) -> dict[str, Any]:
    connection = Connection(parse_address(url), headers or {}, tls)
    request = InferRequest("m", b"picture", ("report",), timeout_s=10, headers=of_call)

    async def call() -> dict[str, Any]:
        transport = open_transport(connection)
        try:
            return await transport.infer(request)
        finally:
            await transport.aclose()

    return loop.run(call()) if way == "sync" else asyncio.run(call())


# -------------------------------------------------------------------------------------------------- certificates


@dataclass
class Papers:
    """An authority, a server's certificate for 127.0.0.1, and a client's, as files.

    Attributes:
        context: for a server in Python; asks for no client certificate.
    """

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.server = self.authority.issue_cert("127.0.0.1", "localhost")
        self.client = self.authority.issue_cert("somebody@client.example")
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.client.private_key_and_cert_chain_pem.write_to_path(self.folder / "both.pem")
        self.client.private_key_pem.write_to_path(self.folder / "key.pem")
        self.client.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @contextmanager
    def serving(self, scheme: str, *, name: str = "", ask_client: bool = False) -> Iterator[str]:
        """The address of a server that shows the certificate (or one for `name`), and may ask the client for one."""
        certificate = self.authority.issue_cert(name) if name else self.server
        if scheme == "grpcs":
            chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
            credentials = grpc.ssl_server_credentials(
                [(certificate.private_key_pem.bytes(), chain)],
                root_certificates=self.authority.cert_pem.bytes() if ask_client else None,
                require_client_auth=ask_client,
            )
            with peers.grpc_peer(peers.grpc_answer(("report", "BYTES", [1], REPORT)), credentials=credentials) as port:
                yield f"grpcs://127.0.0.1:{port}"
            return
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)
        if ask_client:
            context.verify_mode = ssl.CERT_REQUIRED
            self.authority.configure_trust(context)
        answer = peers.kserve_answer([peers.output("report", "BYTES", [1], 6)], REPORT)
        with peers.tcp_peer(peers.secured(answer, context)) as port:
            yield f"https://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("stranger"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", WAYS)
def test_an_authority_of_ones_own(way: str, scheme: str, papers: Papers) -> None:
    with papers.serving(scheme) as url:
        assert infer(url, way, Tls(ca_file=papers.ca_file)) == {"report": [b"{}"]}
        assert infer(url.replace("127.0.0.1", "localhost"), way, Tls(ca_file=str(papers.ca_file)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["other authority", "public authorities", "other name"])
def test_who_is_not_trusted(case: str, way: str, scheme: str, papers: Papers, stranger: Papers) -> None:
    tls = {
        "other authority": Tls(ca_file=stranger.ca_file),
        "public authorities": None,
        "other name": Tls(ca_file=papers.ca_file),
    }[case]
    name = "other.example" if case == "other name" else ""
    with papers.serving(scheme, name=name) as url, pytest.raises(ServerRefused, match="not trusted") as refusal:
        infer(url, way, tls)
    assert not refusal.value.retry
    assert "ca_file" in refusal.value.user_action


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", WAYS)
def test_client_certificates(way: str, scheme: str, papers: Papers, stranger: Papers) -> None:
    with papers.serving(scheme, ask_client=True) as url:
        folder = papers.folder
        assert infer(url, way, Tls(papers.ca_file, folder / "cert.pem", folder / "key.pem")) == {"report": [b"{}"]}
        assert infer(url, way, Tls(papers.ca_file, folder / "both.pem")) == {"report": [b"{}"]}
        for tls in (Tls(papers.ca_file), Tls(papers.ca_file, stranger.folder / "both.pem")):
            # gRPC does not say why the server hung up, and TLS 1.3 often cannot.
            with pytest.raises(ServerUnavailable):
                infer(url, way, tls)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", WAYS)
def test_tls_to_a_server_without(way: str, scheme: str) -> None:
    with peers.tcp_peer(peers.babbling) as port, pytest.raises(ServerRefused, match="not as a Triton"):
        infer(f"{scheme}://127.0.0.1:{port}", way)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", WAYS)
def test_a_handshake_that_never_ends_respects_the_deadline(way: str, scheme: str) -> None:
    with peers.tcp_peer(peers.silent) as port:
        request = InferRequest("m", b"picture", ("report",), timeout_s=0.5)
        url = f"{scheme}://127.0.0.1:{port}"

        def call() -> Any:
            async def run() -> Any:
                transport = open_transport(Connection(parse_address(url)))
                try:
                    return await transport.infer(request)
                finally:
                    await transport.aclose()

            return loop.run(run()) if way == "sync" else asyncio.run(run())

        took, error = peers.seconds_of(call)
    assert isinstance(error, TimeoutError), error
    assert took < 20, "for a busy machine; a call that is held is held until the test is given up"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_that_are_no_certificates(scheme: str, papers: Papers, tmp_path: Path) -> None:
    address = parse_address(f"{scheme}://127.0.0.1")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("certainly")
    for tls, error, words in (
        (Tls(ca_file=tmp_path / "nowhere.pem"), FileNotFoundError, "nowhere.pem"),
        (Tls(cert_file=tmp_path / "nowhere.pem"), FileNotFoundError, "nowhere.pem"),
        (Tls(ca_file=nonsense), ValueError, "nonsense.pem holds no certificates"),
        (Tls(papers.ca_file, nonsense), ValueError, "nonsense.pem"),
        (Tls(papers.ca_file, papers.folder / "cert.pem"), ValueError, "cert.pem"),
        (Tls(papers.ca_file, papers.folder / "cert.pem", papers.ca_file), ValueError, "cert.pem"),
    ):
        with pytest.raises(error, match=words):
            open_transport(Connection(address, tls=tls))


def test_a_key_with_a_password_is_not_asked_for_at_the_terminal(papers: Papers, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(papers.client.private_key_pem.bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ValueError, match="without a password"):
        Tls(papers.ca_file, papers.folder / "cert.pem", locked).context()


def test_certificates_that_would_not_be_used() -> None:
    with pytest.raises(ValueError, match="grpcs://"):
        Connection(parse_address("grpc://127.0.0.1"), tls=Tls())
    with pytest.raises(ValueError, match="https://"):
        Connection(parse_address("http://127.0.0.1"), tls=Tls())
    with pytest.raises(ValueError, match="cert_file"):
        Tls(key_file="key.pem")


# ------------------------------------------------------------------------------------------------------- headers

SECRET = {"authorization": "Bearer hunter2", "x-api-key": "k3y", "x-team": "blue"}


@contextmanager
def noting(scheme: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a server, and the headers of what it was asked."""
    noted: list[dict[str, str]] = []

    def serve_grpc(request: Any, context: grpc.ServicerContext) -> Any:
        noted.append({str(name): str(value) for name, value in context.invocation_metadata()})
        answers = {
            "ServerReadyRequest": service_pb2.ServerReadyResponse(ready=True),
            "ModelReadyRequest": service_pb2.ModelReadyResponse(ready=True),
            "ModelMetadataRequest": service_pb2.ModelMetadataResponse(name="m"),
        }
        return answers.get(type(request).__name__, service_pb2.ModelInferResponse())

    def serve_http(connection: socket.socket, over: threading.Event) -> None:
        while data := peers.read_request(connection):
            lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
            noted.append({name.lower(): value for name, value in (line.split(": ", 1) for line in lines)})
            body = b'{"name": "m", "outputs": []}'
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    peer = peers.grpc_peer(serve_grpc) if scheme == "grpc" else peers.tcp_peer(serve_http)
    with peer as port:
        yield f"{scheme}://127.0.0.1:{port}", noted


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("way", WAYS)
def test_headers_go_with_every_request(way: str, scheme: str) -> None:
    with noting(scheme) as (url, noted):
        connection = Connection(parse_address(url), SECRET)
        request = InferRequest("m", b"x", (), timeout_s=10, headers={"traceparent": "00-1-2-01", "x-team": "red"})
        plain = InferRequest("m", b"x", (), timeout_s=10)

        async def run() -> None:
            transport = open_transport(connection)
            await transport.infer(request)
            await transport.infer(plain)
            assert await transport.server_ready(10)
            assert await transport.model_ready("m", 10)
            assert (await transport.metadata("m", 10)).name == "m"
            await transport.aclose()

        loop.run(run()) if way == "sync" else asyncio.run(run())
    assert len(noted) == 5
    for number, headers in enumerate(noted):
        assert headers["authorization"] == "Bearer hunter2"
        assert headers["x-api-key"] == "k3y"
        assert headers["x-team"] == ("red" if number == 0 else "blue")
        assert headers.get("traceparent") == ("00-1-2-01" if number == 0 else None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Upper", "x"),
        ("x y", "x"),
        ("", "x"),
        (":path", "x"),
        ("grpc-timeout", "1S"),
        ("x-bin", "x"),
        ("host", "elsewhere"),
        ("content-length", "0"),
        ("x-a", "two\nlines"),
        ("x-a", "two\r\nx-b: lines"),
        ("x-a", "ü"),
        ("x-a", " spaced "),
        ("x-a", "\0"),
    ],
)
def test_headers_that_cannot_be_sent(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header") as refusal:
        Connection(parse_address("grpc://localhost"), {name: value})
    assert value not in str(refusal.value) or len(value) < 3


def test_secrets_are_not_shown() -> None:
    connection = Connection(parse_address("grpcs://server.example"), SECRET)
    for shown in (repr(connection), str(connection), repr(open_transport(connection))):
        assert "hunter2" not in shown
        assert "k3y" not in shown


def test_tokens_in_the_open_are_warned_of() -> None:
    for url in ("grpc://server.example", "http://10.1.2.3:8000", "http://[fe80::1]"):
        for name in ("authorization", "x-api-key"):
            with pytest.warns(InsecureTokenWarning, match=name):
                open_transport(Connection(parse_address(url), {name: "x"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for url in (
            "grpc://localhost",
            "http://127.8.9.1",
            "http://[::1]",
            "grpcs://server.example",
            "https://10.1.2.3",
        ):
            open_transport(Connection(parse_address(url), SECRET))
        open_transport(Connection(parse_address("http://server.example"), {"x-team": "blue"}))
