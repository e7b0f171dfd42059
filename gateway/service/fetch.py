"""Pictures by URL: from public addresses only, checked when connecting, through an allow-list where there is one."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
from cutaway.contract.limits import INPUT_LIMITS
from httpx_secure import SSRFProtectionError, httpx_ssrf_protection

from gateway.service.errors import ServiceProblem

TIMEOUT_S = 10.0
MAX_REDIRECTS = 3


class Fetcher:
    """Downloads pictures that requests name.

    Args:
        hosts: the only hosts that may be named, with their subdomains; any where empty.
        private: whether private addresses may be asked; for tests and closed networks.
    """

    def __init__(self, hosts: tuple[str, ...] = (), private: bool = False) -> None:
        self._hosts = hosts
        client = httpx.AsyncClient(
            timeout=TIMEOUT_S, follow_redirects=True, max_redirects=MAX_REDIRECTS, trust_env=False
        )
        self._client = client if private else httpx_ssrf_protection(client)
        client.event_hooks["request"].append(self._check)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _check(self, request: httpx.Request) -> None:
        """For each request, those of redirects too."""
        host = request.url.host.lower()
        if self._hosts and not any(host == each or host.endswith(f".{each}") for each in self._hosts):
            raise httpx.UnsupportedProtocol(f"{host} is not an allowed host")

    async def fetch(self, url: str, title: str = "failed_image_download") -> bytes:
        """The file at a URL.

        Raises:
            ServiceProblem: 400; `title` is the remove.bg code where the download fails.
        """
        action = "Send the picture itself."
        if urlsplit(url).scheme not in ("http", "https") or len(url) > 2048:
            raise ServiceProblem(
                400,
                "INVALID_OPTION",
                "The URL is none.",
                action,
                title="invalid_bg_image_url" if "bg" in title else "invalid_image_url",
            )
        most = INPUT_LIMITS.max_file_bytes
        try:
            async with self._client.stream("GET", url) as response:
                response.raise_for_status()
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > most:
                        message = f"The picture has more than {most:,} bytes."
                        raise ServiceProblem(400, "FILE_TOO_LARGE", message, action, title="file_too_large")
                return bytes(data)
        except SSRFProtectionError:
            message = "The URL leads to an address that is not public."
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"The picture could not be downloaded: {type(error).__name__}."
        raise ServiceProblem(400, "DOWNLOAD_FAILED", message, action, title=title)
