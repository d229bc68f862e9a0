"""Data sets on the Hugging Face Hub: each revision is streamed once, into an Arrow file here that is then read."""

import contextlib
import fcntl
import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from biencoder.data.files.columns import RowError, find_columns
from biencoder.data.files.lines import listed
from biencoder.errors import UserError, first_line, require_package
from biencoder.files import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

HUB = "hf:"
USUAL_SPLIT = "train"
_ADDRESS = re.compile(r"hf:(?P<name>[^:@\s]+)(@(?P<revision>[^:@\s]+))?(:(?P<first>[^:]+))?(:(?P<second>[^:]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS = 1000  # in memory at a time
TIMEOUT = 20.0  # seconds for the one question that needs an answer at each start

logger = logging.getLogger(__name__)


class _Address(NamedTuple):
    """What ``hf:NAME[@REVISION][:CONFIG][:SPLIT]`` says; a single word after the name may be either of the two."""

    name: str
    revision: str | None
    words: tuple[str, ...]

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes, and no branch or tag."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def is_on_hub(path: Path) -> bool:
    """Whether a path of the training data is the address of a data set on the Hub."""
    return str(path).startswith(HUB)


def pinned(path: Path) -> str:
    """The address with the revision that this process reads: what somebody types to get these rows again."""
    address = _parse(path)
    return ":".join([f"{HUB}{address.name}@{local_copy(path).stem}", *address.words])


@functools.cache  # a command may read its data twice, and must then read the same revision
def local_copy(path: Path) -> Path:
    """The Arrow file that holds the rows; it is made if there is none of this revision.

    A commit that the address names needs no network if its copy is here. Otherwise the Hub says which commit is
    meant; if it cannot be reached, the newest copy is used, and the log says so.

    Args:
        path: ``hf:NAME[@REVISION][:CONFIG][:SPLIT]``.

    Raises:
        UserError: the package ``datasets`` is not installed; there is no such data set, configuration or split; the Hub
            cannot be reached and there is no copy; or the data set has no columns to train on.
    """
    address = _parse(path)
    folder = _folder(address)
    if address.is_pinned and (copy := folder / f"{address.revision}.arrow").is_file():
        return copy
    try:
        commit = _commit_of(path, address)
    except ConnectionError as error:
        return _newest_copy(path, address, error)
    copy = folder / f"{commit}.arrow"
    if copy.is_file():
        return copy
    require_package("datasets", str(path), "datasets")
    with _alone(folder):  # the ranks of a run want the same copy
        if not copy.is_file():
            logger.info("%s: copying revision %s to %s", path, commit, copy)
            _write(copy, _batches(_open(path, address, commit), path), path)
    return copy


def usual_split(names: Sequence[str], usual: str = USUAL_SPLIT) -> str | None:
    """The split to read if nobody named one: the usual one, or the only one; None if there is no such split."""
    if usual in names:
        return usual
    return names[0] if len(names) == 1 else None


def _parse(path: Path) -> _Address:
    match = _ADDRESS.fullmatch(str(path))
    if match is None:
        raise UserError(f"{path}: write a data set on the Hub as hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    words = tuple(word for word in (match["first"], match["second"]) if word)
    return _Address(match["name"], match["revision"], words)


def _folder(address: _Address) -> Path:
    """Where the copies are: in the cache of huggingface_hub, by what was asked for."""
    from huggingface_hub import cached_assets_path

    branch = "main" if address.revision is None or address.is_pinned else address.revision
    return cached_assets_path("biencoder", namespace=address.name, subfolder=":".join([branch, *address.words]))


def _commit_of(path: Path, address: _Address) -> str:
    """The commit that the Hub has for the address now.

    Raises:
        ConnectionError: the Hub cannot be reached.
        UserError: the Hub does not have the data set, or not for you.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi().dataset_info(address.name, revision=address.revision, timeout=TIMEOUT)
    except RevisionNotFoundError as error:
        raise UserError(f"{path}: the data set on the Hugging Face Hub has no revision {address.revision}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{path}: the Hugging Face Hub has no such data set, or does not show it to you; check the name, and for a "
            "private or gated one set HF_TOKEN or type hf auth login"
        ) from error
    except Exception as error:  # each HTTP client has names of its own for a network that is not there
        raise ConnectionError(first_line(error)) from error
    return str(found.sha)


def _newest_copy(path: Path, address: _Address, error: ConnectionError) -> Path:
    copies = _folder(address).glob("*.arrow")
    newest = max(copies, key=lambda copy: copy.stat().st_mtime, default=None)
    if newest is None or address.is_pinned:  # a pinned copy that is here was found before
        raise UserError(
            f"{path}: the Hugging Face Hub cannot be reached ({error}), and no earlier run has left a copy here"
        ) from error
    logger.warning("%s: the Hugging Face Hub cannot be reached; the copy of revision %s is used", path, newest.stem)
    return newest


def _open(path: Path, address: _Address, commit: str) -> Any:
    """The rows as a stream of ``datasets``."""
    import datasets

    source = f"hf://datasets/{address.name}"  # so that a folder of that name here is not read instead
    try:
        configs = datasets.get_dataset_config_names(source, revision=commit)
        config, words = _chosen_config(path, configs, address.words)
        splits = datasets.load_dataset_builder(source, config, revision=commit).as_streaming_dataset()
    except UserError:
        raise
    except Exception as error:  # of any reader of files, or HTTP client
        raise UserError(f"{path}: cannot be read from the Hugging Face Hub ({first_line(error)})") from error
    names = list(splits)
    split = words[0] if words else usual_split(names)
    if split not in splits:
        lacks = "has several splits; name one of them" if split is None else f"has no split {split}; it has"
        raise UserError(f"{path}: {lacks}: {listed(names)}")
    return splits[split]


def _chosen_config(path: Path, configs: Sequence[str], words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The configuration, and the words that are left for the split."""
    if words and words[0] in configs:
        return words[0], words[1:]
    if len(words) < 2 and (len(configs) == 1 or "default" in configs):
        return ("default" if "default" in configs else configs[0]), words
    if not words:
        raise UserError(f"{path}: has several configurations; name one of them: {listed(configs)}")
    raise UserError(f"{path}: has no configuration {words[0]}; it has: {listed(configs)}")


def _batches(rows: Any, path: Path) -> "Iterator[pa.Table]":
    """The rows of a stream in tables; what goes wrong at the other end is a `UserError`."""
    number = 0
    try:
        for batch in rows.with_format("arrow").iter(batch_size=_ROWS):
            yield batch
            number += batch.num_rows
    except Exception as error:
        raise UserError(
            f"{path}: reading from the Hub stopped after {number:,} rows ({first_line(error)}); type the command again"
        ) from error


def _write(copy: Path, batches: "Iterator[pa.Table]", path: Path) -> None:
    import pyarrow as pa

    first = next(batches, None)
    if first is None:
        raise UserError(f"{path}: holds no rows")
    try:
        find_columns(tuple(first.column_names))
    except RowError as error:
        raise UserError(f"{path}: {error}") from error
    with atomic_write(copy, "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        stream.write_table(first)
        for number, batch in enumerate(batches, 1):
            if batch.schema != first.schema:
                raise UserError(
                    f"{path}: the columns after row {number * _ROWS:,} are of other kinds than those before; download "
                    "the files, and train on them"
                )
            stream.write_table(batch)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
