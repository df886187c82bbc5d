"""The model that a candidate was made from, as far as the Hub knows it: its licence, and what else its card states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gates.errors import UsageError
from registry import output
from registry.manifests import Manifest
from registry.remotes import hub

_LICENCE = re.compile(r"(licen[cs]e|copying|notice|use[_-]policy)([._-][\w.-]*)?", re.IGNORECASE)
_LARGEST = 1 << 20
"""Bytes. A licence's text is shorter."""

_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")


@dataclass(frozen=True, slots=True)
class Base:
    """`repository` is None for a model that came from a folder. `about` are fields of its card, as they stand there;
    `licences` the files that hold its licence's text."""

    repository: str | None
    revision: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    licences: dict[str, bytes] = field(default_factory=dict)


def of(chain: Sequence[tuple[str, Manifest]], *, licence: str | None) -> Base:
    """The model at the end of a lineage.

    Args:
        chain: manifests, the newest first.
        licence: stated by the user; goes before the card's.

    Raises:
        UsageError: it came from the Hub, its licence cannot be read there, and none is stated.
    """
    stated = {"license": licence} if licence else {}
    settings = chain[-1][1].inputs.settings
    address = hub.parse(str(settings.get("source", "")))
    if address is None:
        if not licence:
            output.hint("the licence of the model that this was made from is not known: --license states it")
        return Base(None, about=stated)
    revision = str(settings.get("revision"))
    try:
        found = _fetched(hub.Address(address.repository, revision))
    except UsageError as error:
        if not licence:
            error.remedy = f"{error.remedy}; or state its licence: --license ID, as its card has it"
            raise
        return Base(address.repository, revision, stated)
    if licence:
        kept = {key: value for key, value in found.about.items() if not key.startswith("license")}
        return Base(address.repository, revision, kept | stated, found.licences)
    if "license" not in found.about:
        output.hint(f"the card of {address.repository} states no licence: --license does")
    return found


def _fetched(address: hub.Address) -> Base:
    with hub.asked(address):
        from huggingface_hub import HfApi

        info = HfApi().model_info(address.repository, revision=address.revision, files_metadata=True)
        card = dict(info.card_data.to_dict()) if info.card_data else {}  # type: ignore[no-untyped-call]
        names = [
            each.rfilename
            for each in info.siblings or []
            if _LICENCE.fullmatch(each.rfilename) and 0 < (each.size or 0) <= _LARGEST
        ]
        licences = {name: hub.beginning(address.repository, str(info.sha), name, _LARGEST) for name in names}
    about = {key: card[key] for key in _KEPT if card.get(key)}
    return Base(address.repository, str(info.sha), about, licences)
