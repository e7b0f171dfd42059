"""Where a provider's client may connect to: its own address, and public ones that answers point to.

An answer names the file to fetch ("output": "https://…"). Left unchecked, whoever controls the answer makes the caller
fetch from inside the caller's network. So an address other than the provider's own has to be https and resolve to
public addresses only, and the connection goes to the very address that was checked, see :mod:`cutaway.addresses`. This
holds for every request, after redirects too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httpx

from cutaway.addresses import PinnedAsyncTransport, PinnedTransport, is_public, origin_of
from cutaway.contract.errors import InvalidOption
from cutaway.providers.errors import InvalidAnswer
from cutaway.transports.deadline import DeadlineTransport


def check_base_url(url: str) -> str:
    """A provider's address without a slash at its end.

    Raises:
        InvalidOption: no http or https address; or one with a user, a password, a query or a fragment, which would end
            up in logs.
    """
    try:
        origin_of(url)
        parts = urlsplit(url)
        plain = "@" not in parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        plain = False
    if not plain:
        allowed = "http://… or https://…, without user, password, query and fragment"
        raise InvalidOption(
            f"base_url has to be {allowed}.", details={"name": "base_url", "value": "not shown", "allowed": allowed}
        )
    return url.rstrip("/")


def check_target(url: str, own: tuple[str, str, int], provider: str) -> None:
    """Refuse an address that can be refused without asking a name server.

    Raises:
        InvalidAnswer: it is neither the provider's own nor a public https address.
    """
    try:
        scheme, host, _ = origin = origin_of(url)
    except ValueError:
        raise _refused(provider, "no http or https address") from None
    if origin == own:
        return
    if scheme != "https" or "@" in urlsplit(url).netloc:
        raise _refused(provider, "not a plain https address")
    try:
        public = is_public(host)
    except ValueError:
        return  # a name: its addresses are looked at when connecting
    if not public:
        raise _refused(provider, "not a public address")


def _refused(provider: str, why: str) -> InvalidAnswer:
    return InvalidAnswer(f"{provider} points to {why}, which is not followed.", details={"provider": provider})


class _Guard:
    """The check of a provider's requests."""

    def __init__(self, own: tuple[str, str, int], provider: str) -> None:
        self._own = own
        self._provider = provider

    def is_own(self, url: httpx.URL) -> bool:
        return origin_of(str(url)) == self._own

    def check(self, url: httpx.URL, addresses: Sequence[str]) -> None:
        check_target(str(url), self._own, self._provider)
        if not self.is_own(url) and not all(is_public(address) for address in addresses):
            raise _refused(self._provider, "a name that leads to an address that is not public")


class GuardedTransport(PinnedTransport):
    """Connects only to what :mod:`.guard` allows; everything else is the inner transports'.

    Args:
        inner: for the provider's own address.
        elsewhere: makes the one for all others when it is needed. It keeps no idle connections: requests go to bare
            addresses, and of two names at one address (a content network has many) neither may use a connection
            whose certificate is the other's.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        elsewhere: Callable[[], httpx.BaseTransport],
        own: tuple[str, str, int],
        provider: str,
    ) -> None:
        guard = _Guard(own, provider)
        super().__init__(guard.check, lambda url: inner if guard.is_own(url) else self._other())
        self._inner = inner
        self._elsewhere = elsewhere
        self._made: httpx.BaseTransport | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        self._inner.close()
        if self._made is not None:
            self._made.close()

    def abandon(self) -> None:
        """After a fork, in the child: let the parent's connections go without a word to the server."""
        for transport in (self._inner, self._made):
            if isinstance(transport, DeadlineTransport):
                transport.abandon()

    def _other(self) -> httpx.BaseTransport:
        with self._lock:
            if self._made is None:
                self._made = self._elsewhere()
            return self._made


class GuardedAsyncTransport(PinnedAsyncTransport):
    """The same as :class:`GuardedTransport` for asyncio."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        elsewhere: Callable[[], httpx.AsyncBaseTransport],
        own: tuple[str, str, int],
        provider: str,
    ) -> None:
        guard = _Guard(own, provider)
        super().__init__(guard.check, lambda url: inner if guard.is_own(url) else self._other())
        self._inner = inner
        self._elsewhere = elsewhere
        self._made: httpx.AsyncBaseTransport | None = None

    async def aclose(self) -> None:
        await self._inner.aclose()
        if self._made is not None:
            await self._made.aclose()

    def _other(self) -> httpx.AsyncBaseTransport:
        if self._made is None:
            self._made = self._elsewhere()
        return self._made
