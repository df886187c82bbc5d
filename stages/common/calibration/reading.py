"""The rows of a dataset as they lie there: a local JSONL or Parquet file, or a dataset of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry.recipes import Dataset

_COMMIT = re.compile(r"[0-9a-f]{40}")

Numbered = Iterator[tuple[int, str, Any]]
"""Rows with their numbers (from 1) and what to call each in a message."""


def open_dataset(dataset: Dataset, project: Path, where: str) -> Numbered:
    """Every row of a dataset, or the first `dataset.pool` of them.

    Args:
        where: the dataset's place in the mix, for messages.

    Raises:
        UsageError: it cannot be had or read.
    """
    if dataset.path is None:
        rows = _hub(dataset, where)
    elif dataset.path.endswith(".parquet"):
        rows = _parquet(project / dataset.path, f"{where}.path")
    else:
        rows = _jsonl(project / dataset.path, f"{where}.path")
    return rows if dataset.pool is None else islice(rows, dataset.pool)


def called(dataset: Dataset) -> str:
    """A dataset in a word: its path, or its id on the Hub with revision, configuration and split."""
    if dataset.path is not None:
        return dataset.path
    part = ":".join(filter(None, (dataset.config, dataset.split)))
    return f"{dataset.hub}@{dataset.revision or 'main'}:{part}"


def pinned(dataset: Dataset, where: str) -> Dataset:
    """A dataset of the Hub at the commit that its revision stands for now; any other as it is.

    Raises:
        UsageError: the Hub does not say.
    """
    if dataset.hub is None or _COMMIT.fullmatch(dataset.revision or ""):
        return dataset
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(dataset.hub, revision=dataset.revision or "main").sha
    except Exception as error:  # noqa: BLE001 - told apart below
        raise _refused(dataset, error, where) from None
    return dataset.model_copy(update={"revision": commit})


def offline() -> bool:
    """Whether the Hub's client was told to use what it has (HF_HUB_OFFLINE)."""
    from huggingface_hub.constants import is_offline_mode

    return bool(is_offline_mode())


def _jsonl(path: Path, where: str) -> Numbered:
    """A row a line; blank lines are passed over."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    name = f"{path}, line {number}"
                    try:
                        row = canonical.loads(line)
                    except IntegrityError as error:
                        raise UsageError(f"not a JSON value in UTF-8: {error}", where=name) from None
                    yield number, name, row
    except OSError as error:
        raise _unreadable(path, error.strerror or "", where) from None


def _parquet(path: Path, where: str) -> Numbered:
    from pyarrow import ArrowException, parquet

    try:
        with path.open("rb") as file:
            number = 0
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, f"{path}, row {number}", row
    except ArrowException as error:
        raise _unreadable(path, f"it is no Parquet file: {error}", where) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), where) from None


def _hub(dataset: Dataset, where: str) -> Numbered:
    """Rows as the publisher's files hold them. Without a pool all files are fetched once, and kept where the Hub's
    client keeps them; with one they are read as far as needed."""
    if Path(str(dataset.hub)).exists():
        raise UsageError(
            f"a folder called {dataset.hub} lies here, and the Hub's client would read that instead",
            where=f"{where}.hub",
            remedy="run this from another folder",
        )
    from datasets import DownloadConfig, load_dataset
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    try:
        rows = load_dataset(
            dataset.hub,
            dataset.config,
            split=dataset.split,
            revision=dataset.revision or "main",
            streaming=dataset.pool is not None,
            download_config=DownloadConfig(max_retries=3),
        )
        for number, row in enumerate(rows, 1):
            yield number, f"{called(dataset)}, row {number}", row
    except Exception as error:  # noqa: BLE001 - told apart below
        raise _refused(dataset, error, where) from None


def _refused(dataset: Dataset, error: Exception, where: str) -> UsageError:
    """What `datasets` raises has many kinds; which of them it was stands in the classes' names."""
    kinds = {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}
    page = f"https://huggingface.co/datasets/{dataset.hub}"
    if dataset.gated or "GatedRepoError" in kinds or "gated dataset" in str(error):
        remedy = f"accept its terms on {page}, log in with `hf auth login`, and run this again"
    elif kinds & {"ConnectionError", "ConnectError", "OfflineModeIsEnabled", "TimeoutException", "Timeout"}:
        remedy = (
            "fetch the mix where there is a network, then run this again: docker compose run --rm mix --recipe RECIPE, "
            "or python -m stages.prune --freeze; or name a local copy: path: FILE.parquet instead of hub"
        )
    else:
        remedy = f"hold id, revision, config and split against {page}"
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return UsageError(f"the dataset {called(dataset)} cannot be had: {first}", where=f"{where}.hub", remedy=remedy)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _unreadable(path: Path, reason: str, where: str) -> UsageError:
    return UsageError(
        f"the dataset {path} cannot be read: {reason}",
        where=where,
        remedy="paths in a mix are relative to the project's folder",
    )
