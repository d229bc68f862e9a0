"""``biencoder export``: writes a model in another tool's format, and checks that it gives the same vectors."""

from pathlib import Path

from biencoder.config import ExportConfig
from biencoder.config.choices import CPU, DENSE, ONNX
from biencoder.data.files.beir import Collection, load_collection
from biencoder.errors import UserError
from biencoder.files import refuse_filled
from biencoder.model.encoder import Encoder
from biencoder.model.onnx.encoder import OnnxEncoder
from biencoder.model.onnx.export import require_packages, write_int8, write_onnx
from biencoder.model.parity import Parity, parity
from biencoder.retrieval.evaluate import DECIDING, evaluate, texts_to_encode
from biencoder.retrieval.text_encoder import TextEncoder
from biencoder.terminal import ProgressLine, say

LARGEST_DIFFERENCE = 1e-5  # between components of vectors of length 1, in float32
LOWEST_COSINE = 0.99999  # of ONNX Runtime's vectors, which it computes in another order
LOWEST_COSINE_INT8 = 0.9


def run(config: ExportConfig) -> None:
    """The command: write the folder, load it again, compare, and say where it is.

    Raises:
        UserError: the folder holds something already, the model does not load, or the copy gives other vectors.
    """
    folder: Path = config.output_dir
    refuse_filled(folder)
    if config.format == ONNX:
        require_packages()
    collection = None if config.data is None else load_collection(config.data, config.split)
    trust = config.trust_remote_code
    encoder = Encoder.load(
        config.model,
        pooling=config.pooling,
        normalize=config.normalize,
        device=CPU,
        max_length=config.max_length,
        trust_remote_code=trust,
    )
    if encoder.settings.parts[0] != DENSE and config.format == ONNX:
        raise UserError(f"--format {ONNX}: the model's head is {encoder.kind}; only one vector a text can be exported")
    if encoder.settings.combined and config.format == ONNX:
        say(f"only the head {DENSE} is exported, of {encoder.kind}")
        encoder.keep_head(DENSE)
    encoder.save(folder)
    found = parity(encoder, Encoder.load(folder, device=CPU, trust_remote_code=trust))
    if found.difference > LARGEST_DIFFERENCE:
        raise _other_vectors(folder, found)
    within = f"within {found.difference:.0e}" if found.difference else "exactly"
    say(f"{folder}: sentence-transformers format; its vectors equal the model's {within}")
    if config.format == ONNX:
        _write_onnx(config, encoder, collection)


def _write_onnx(config: ExportConfig, encoder: Encoder, collection: Collection | None) -> None:
    """Write the ONNX files, and compare their vectors, and their rankings if there are data, with the model's."""
    folder = config.output_dir
    files = {write_onnx(encoder, folder): LOWEST_COSINE}
    if config.int8:
        files[write_int8(folder)] = LOWEST_COSINE_INT8
    if collection is not None:
        say(f"nDCG@10 of the model on {collection.description}: {_ndcg(encoder, collection):.4f}")
    for file, lowest in files.items():
        runs = OnnxEncoder(file, encoder)
        found = parity(encoder, runs)
        if found.cosine < lowest:
            raise _other_vectors(file, found)
        said = f"{file}: {file.stat().st_size / 1e6:.1f} MB; lowest cosine with the model's vectors {found.cosine:.6f}"
        said += f", largest difference {found.difference:.0e}"
        say(said if collection is None else f"{said}; nDCG@10 {_ndcg(runs, collection):.4f}")


def _ndcg(encoder: TextEncoder, collection: Collection) -> float:
    with ProgressLine(texts_to_encode(collection), "evaluate") as line:
        return evaluate(encoder, collection, progress=line.update).metrics[DECIDING]


def _other_vectors(path: Path, found: Parity) -> UserError:
    return UserError(
        f"{path}: its vectors differ from the model's by up to {found.difference:.1e} (lowest cosine "
        f"{found.cosine:.5f}); do not use it"
    )
