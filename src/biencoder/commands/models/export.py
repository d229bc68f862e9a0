"""``biencoder export``: writes a model in another tool's format, and checks that it gives the same vectors."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from biencoder.config import ExportConfig
from biencoder.config.choices import CPU, DENSE, SENTENCE_TRANSFORMERS
from biencoder.data.files.beir import Collection, load_collection
from biencoder.errors import UserError
from biencoder.files import refuse_filled
from biencoder.model.encoder import Encoder
from biencoder.model.files.pretrained import locate
from biencoder.model.files.saving import whole_model
from biencoder.model.files.settings import adapter_base
from biencoder.model.parity import Parity, parity
from biencoder.model.runtimes.runtime import Runtime, find_runtime, size
from biencoder.model.runtimes.runtime_encoder import RuntimeEncoder
from biencoder.retrieval.evaluate import DECIDING, evaluate, texts_to_encode
from biencoder.retrieval.text_encoder import TextEncoder
from biencoder.terminal import ProgressLine, say

LARGEST_DIFFERENCE = 1e-5  # between components of vectors of length 1, in float32
LOWEST_COSINE = 0.99999  # of another runtime's vectors, which it computes in another order
LOWEST_COSINE_INT8 = 0.9


class Job(NamedTuple):
    """What is exported.

    Attributes:
        config: what was asked for.
        encoder: the model.
        collection: to measure nDCG@10 on, or None.
    """

    config: ExportConfig
    encoder: Encoder
    collection: Collection | None


def run(config: ExportConfig) -> None:
    """The command: write the folder, load it again, compare, and say where it is.

    Raises:
        UserError: the folder holds something already, the model does not load, or the copy gives other vectors; then
            nothing is written.
    """
    folder: Path = config.output_dir
    refuse_filled(folder)
    runtime = None if config.format == SENTENCE_TRANSFORMERS else find_runtime(config.format)
    collection = None if config.data is None else load_collection(config.data, config.split)
    job = Job(config, _load(config), collection)
    with whole_model(folder) as staged:
        difference = _write_copy(job, staged)
        if runtime is not None:
            _write_files(job, runtime, staged)
    within = f"within {difference:.0e}" if difference else "exactly"
    say(f"{folder}: sentence-transformers format; its vectors equal the model's {within}")


def _load(config: ExportConfig) -> Encoder:
    if not config.merge_adapter and adapter_base(locate(config.model)) is None:
        raise UserError(f"--no-merge-adapter: {config.model} is a whole model, not an adapter; leave the flag out")
    encoder = Encoder.load(
        config.model,
        pooling=config.pooling,
        normalize=config.normalize,
        device=CPU,
        max_length=config.max_length,
        merge_adapter=config.merge_adapter,
        trust_remote_code=config.trust_remote_code,
    )
    if config.format == SENTENCE_TRANSFORMERS:
        return encoder
    if encoder.settings.parts[0] != DENSE:
        raise UserError(
            f"--format {config.format}: the model's head is {encoder.kind}; only one vector a text can be exported"
        )
    if encoder.settings.combined:
        say(f"only the head {DENSE} is exported, of {encoder.kind}")
        encoder.keep_head(DENSE)
    return encoder


def _write_copy(job: Job, staged: Path) -> float:
    """Write a sentence-transformers folder; how much its vectors differ from the model's."""
    config = job.config
    job.encoder.save(staged)
    copy = Encoder.load(
        staged, device=CPU, merge_adapter=config.merge_adapter, trust_remote_code=config.trust_remote_code
    )
    found = parity(job.encoder, copy)
    if found.difference > LARGEST_DIFFERENCE:
        raise _other_vectors(config.output_dir, "the copy", found)
    return found.difference


def _write_files(job: Job, runtime: Runtime, staged: Path) -> None:
    """Add a runtime's files; compare their vectors, and their rankings if there are data, with the model's."""
    encoder, collection = job.encoder, job.collection
    if collection is not None:
        say(f"nDCG@10 of the model on {collection.description}: {_ndcg(encoder, collection):.4f}")
    for file, lowest in _written(job, runtime, staged):
        name = file.relative_to(staged)
        runs = RuntimeEncoder(runtime.session(file), encoder)
        found = parity(encoder, runs)
        if found.cosine < lowest:
            raise _other_vectors(job.config.output_dir, str(name), found)
        said = f"{name}: {size(file) / 1e6:.1f} MB; lowest cosine with the model's vectors {found.cosine:.6f}"
        said += f", largest difference {found.difference:.0e}"
        say(said if collection is None else f"{said}; nDCG@10 {_ndcg(runs, collection):.4f}")


def _written(job: Job, runtime: Runtime, staged: Path) -> Iterator[tuple[Path, float]]:
    """Each file and the lowest cosine that it may have."""
    yield runtime.write(job.encoder, staged), LOWEST_COSINE
    if job.config.int8:
        yield runtime.write_int8(staged), LOWEST_COSINE_INT8


def _other_vectors(folder: Path, name: str, found: Parity) -> UserError:
    return UserError(
        f"{folder}: nothing is written there, because the vectors of {name} differ from the model's by up to "
        f"{found.difference:.1e} (lowest cosine {found.cosine:.5f})"
    )


def _ndcg(encoder: TextEncoder, collection: Collection) -> float:
    with ProgressLine(texts_to_encode(collection), "evaluate") as line:
        return evaluate(encoder, collection, progress=line.update).metrics[DECIDING]
