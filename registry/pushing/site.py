"""A repository on the Hub that is written to: who writes, what lies there, and what went wrong, in words of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gates.errors import BusyError, SluiceError, UsageError
from registry import output
from registry.remotes import hub
from registry.remotes.hub import Address

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_MAY_WRITE = ("admin", "write", "contributor")
"""Roles in an organisation whose members may make repositories."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file at one commit: its bytes (count), and the SHA-256 of a large one or the git blob id of another."""

    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, slots=True)
class State:
    """A repository at one commit. `tags` name commits; they are looked up with main alone."""

    commit: str
    files: dict[str, Stored]
    tags: dict[str, str]
    private: bool
    gated: bool


def connect(address: Address) -> tuple[HfApi, str]:
    """The Hub's client, with the token that it finds, and who that token is.

    Raises:
        UsageError: there is no token, or it may not write to the address's namespace.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    where = str(address)
    if not get_token():
        raise UsageError(
            "there is no token to write with", where=where, remedy="hf auth login, or HF_TOKEN in the environment"
        )
    disable_progress_bars()
    api = HfApi()
    with told(address):
        me = api.whoami()
        role = ((me.get("auth") or {}).get("accessToken") or {}).get("role")
        roles = {str(each.get("name")): each.get("roleInOrg") for each in me.get("orgs") or []}
        who = str(me["name"])
    namespace = address.repository.partition("/")[0]
    roles |= {who: "admin"}
    if role == "read":
        raise UsageError(
            "the token may only read", where=where, remedy="make one that may write: hf auth login --force"
        )
    if (roles.get(namespace) or "write") not in _MAY_WRITE or namespace not in roles:
        mine = ", ".join(sorted(name for name, each in roles.items() if (each or "write") in _MAY_WRITE))
        raise UsageError(f"{who} may not write to {namespace}", where=where, remedy=f"send it to one of: {mine}")
    return api, who


def look(api: HfApi, address: Address, revision: str | None = None) -> State | None:
    """What lies at a revision (None: main); None if there is no such repository."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with told(address):
        try:
            info = api.model_info(address.repository, revision=revision, files_metadata=True)
            refs = api.list_repo_refs(address.repository) if revision is None else None
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    if str(info.id).lower() != address.repository.lower():
        raise UsageError(f"this repository is called {info.id} now", where=str(address), remedy=f"hf://{info.id}")
    files = {
        each.rfilename: Stored(each.size or 0, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in info.siblings or []
    }
    tags = {each.name: each.target_commit for each in refs.tags} if refs else {}
    return State(str(info.sha), files, tags, bool(info.private), bool(info.gated))


def check_rights(api: HfApi, address: Address, state: State, *, private: bool) -> None:
    """
    Raises:
        UsageError: the token may not write there, or it is public and should be private.
    """
    with told(address):
        api.auth_check(address.repository, write=True)
    if private and not state.private:
        raise UsageError(
            "this repository is public already",
            where=str(address),
            remedy="make it private on its page, or leave --private out",
        )
    if state.private:
        output.hint(f"{address.repository} is private: only its members can add it")
    if state.gated:
        output.hint(f"{address.repository} is gated: who adds it needs to be let in")


def check_card(api: HfApi, address: Address, card: bytes) -> None:
    """
    Raises:
        UsageError: the Hub would not take the card. It says so of a commit too, but after the large files were sent.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    with told(address):
        answer = get_session().post(
            f"{api.endpoint}/api/validate-yaml",
            json={"content": card.decode(), "repoType": "model"},
            headers=build_hf_headers(),
        )
        if answer.status_code != 400:
            hf_raise_for_status(answer)
            return
        said = "; ".join(str(each.get("message")) for each in answer.json().get("errors", []))
    raise UsageError(
        f"the Hub does not take the card: {hub.scrubbed(said)[:300]}",
        where=str(address),
        remedy="--license states another licence; the rest of it comes from the base's card",
    )


@contextmanager
def told(address: Address) -> Iterator[None]:
    """Errors of the Hub when it is written to, as ours; no token is in them."""
    import huggingface_hub.errors as client

    with hub.asked(address):
        try:
            try:
                yield
            except RuntimeError as error:  # how the client ends an upload, whatever the cause was
                if not isinstance(error.__cause__, Exception):
                    raise
                raise error.__cause__ from None
        except (client.RepositoryNotFoundError, client.RevisionNotFoundError, client.HFValidationError):
            raise  # which mean the same as where it is read
        except client.HfHubHTTPError as error:
            refusal = _refusal(error, str(address))
            if refusal is None:
                raise
            raise refusal from None


def _refusal(error: HfHubHTTPError, where: str) -> SluiceError | None:
    """What the Hub refuses whoever writes, in words; None if it is the Hub that fails, or where it is read too."""
    status = error.response.status_code
    said = hub.scrubbed((error.server_message or "").strip())[:300]
    because = f": {said}" if said else ""
    if status == 403:
        remedy = "ask an owner for the right to write, or send it elsewhere"
        return UsageError(f"the token may not do this{because}", where=where, remedy=remedy)
    if status in (409, 412):
        what = f"somebody else changed the repository at the same moment{because}"
        return BusyError(what, where=where, remedy="run this again: it looks at what is there by then")
    if status < 500 and status not in (401, 429):
        return UsageError(f"the Hub refuses ({status}){because}", where=where, remedy="run this again; it continues")
    return None


def differing(files: Mapping[str, Stored], expected: Mapping[str, Stored]) -> list[str]:
    """The files that are missing, or not as expected by the digest that the Hub states of them."""
    return sorted(name for name, want in expected.items() if not _same(files.get(name), want))


def _same(there: Stored | None, want: Stored) -> bool:
    if there is None or there.size != want.size:
        return False
    if there.sha256 is not None:
        return there.sha256 == want.sha256
    return there.blob is not None and there.blob == want.blob
