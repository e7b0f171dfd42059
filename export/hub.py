"""Ask the Hugging Face Hub for a file: which commit, how large, which digest. The bytes go through `export.download`.

`huggingface_hub` asks, and its errors are turned into one line each. Its own download starts a file from the beginning
in every run, so a broken one of 900 MB would be lost; that is why the bytes do not go through it.
"""

import os
import re
import time
from collections.abc import Mapping

import httpx2
from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from export.catalog import Weights
from export.download import FetchError, NotAllowed, NotThere, Patience, Remote, host_of, no_network

DEFAULT_HUB = "https://huggingface.co"
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGINGFACE_TOKEN")
TIMEOUT_S = 15.0
OFFLINE = "HF_HUB_OFFLINE forbids the network; unset it, or take the files from a folder: --from DIR"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of the environment, or the one that `hf auth login` keeps. It goes to the Hub alone and never shows."""
    for name in TOKEN_VARIABLES:
        if token := environment.get(name, "").strip():
            return token
    return get_token()


def ask_hub(weights: Weights, revision: str, hub: str, token: str | None, patience: Patience) -> Remote:
    """Where the file is, with the commit in its address, so that it stays the same one until it is whole.

    Args:
        revision: commit, branch or tag.
        hub: address of the Hub or of a mirror that speaks its API.

    Raises:
        NoNetwork: the Hub cannot be reached.
        NotAllowed: it wants a token, another token, or a licence accepted.
        NotThere: it has no such repository, revision or file.
        FetchError: it answers something else, or is no Hub.
    """
    url = hf_hub_url(str(weights.repository), weights.file, revision=revision, endpoint=hub)
    failures = 0
    while True:
        failures += 1
        try:
            found = get_hf_file_metadata(
                url, token=token or False, endpoint=hub, timeout=TIMEOUT_S, user_agent="cutaway-export"
            )
            break
        except OfflineModeIsEnabled:
            raise FetchError(OFFLINE) from None
        except HfHubHTTPError as error:
            if failures >= patience.tries or not _may_pass(error.response.status_code):
                raise refusal(weights, revision, hub, token, error) from None
        except httpx2.HTTPError as error:
            if failures >= patience.tries:
                raise no_network(hub, error) from None
        time.sleep(patience.wait_s(failures))
    if found.commit_hash is None:
        raise FetchError(f"{host_of(hub)} does not answer as a Hub does (it names no commit); check its address")
    sha256 = found.etag if found.etag and _SHA256.fullmatch(found.etag) else None
    return Remote(
        url=hf_hub_url(str(weights.repository), weights.file, revision=found.commit_hash, endpoint=hub),
        is_fixed=True,
        size_bytes=found.size,
        sha256=sha256,
        revision=found.commit_hash,
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def _may_pass(status: int) -> bool:
    """Whether an answer may be another one a moment later."""
    return status in (408, 429) or status >= 500


def refusal(weights: Weights, revision: str, hub: str, token: str | None, error: HfHubHTTPError) -> FetchError:
    """One line for what the Hub answered in place of the file."""
    host, repository = host_of(hub), weights.repository
    if isinstance(error, GatedRepoError):
        page = f"{hub.rstrip('/')}/{repository}"
        if token:
            return NotAllowed(
                f"{repository} is gated, and the account of your token has no access; accept its licence at {page} "
                "and run it again"
            )
        return NotAllowed(
            f"{repository} is gated; accept its licence at {page}, make a token at {hub.rstrip('/')}/settings/tokens "
            f"and set {TOKEN_VARIABLES[0]}"
        )
    if isinstance(error, RevisionNotFoundError):
        return NotThere(f"{host} has no revision {revision} of {repository}")
    if isinstance(error, RemoteEntryNotFoundError):
        return NotThere(f"{host} has no {weights.file} in {repository} at {revision}")
    status = error.response.status_code
    if isinstance(error, RepositoryNotFoundError):
        # The Hub answers 401 for a repository that is not there, so as not to tell of private ones.
        return NotThere(
            f"{host} has no repository {repository}, or it is private"
            + (
                "; the account of your token does not see it"
                if token
                else f"; for a private one set {TOKEN_VARIABLES[0]}"
            )
        )
    return status_refusal(weights, hub, token, status)


def status_refusal(weights: Weights, hub: str, token: str | None, status: int) -> FetchError:
    """One line for a bare status of the Hub or of what it sends on to."""
    host = host_of(hub)
    if status in (401, 403):
        if token:
            return NotAllowed(
                f"{host} refused your token for {weights.repository} (status {status}); make a new one that may read "
                f"it at {hub.rstrip('/')}/settings/tokens and set {TOKEN_VARIABLES[0]}"
            )
        return NotAllowed(f"{host} wants a token for {weights.repository} (status {status}); set {TOKEN_VARIABLES[0]}")
    if status in (404, 410):
        return NotThere(f"{host} has no {weights.file} in {weights.repository} (status {status})")
    if _may_pass(status):
        return FetchError(f"{host} is overloaded or out of order (status {status}); try again later")
    return FetchError(f"{host} answered {weights.repository} with status {status}")
