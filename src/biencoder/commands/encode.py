"""``biencoder encode``: encodes a file of texts as a matrix of vectors."""

from biencoder.config import EncodeConfig
from biencoder.config.choices import DENSE, MULTI, SPARSE
from biencoder.distributed import shares_work
from biencoder.model.encoder import load_encoder
from biencoder.retrieval.encode import encode_file
from biencoder.retrieval.texts import read_texts
from biencoder.terminal import progress_line, say


@shares_work
def run(config: EncodeConfig) -> None:
    """The command: encode the file and say where the vectors are."""
    next(read_texts(config.input), None)  # a missing file is reported before the model is loaded
    encoder = load_encoder(config)
    with progress_line() as progress:
        made = encode_file(
            encoder, config.input, config.output, kind=config.kind, vectors=config.vectors, progress=progress
        )
    what = {
        DENSE: f"{made.rows:,} vectors of {made.dim} dimensions, {made.vectors}",
        MULTI: f"vectors of {made.dim} dimensions for the tokens of {made.rows:,} texts, {made.vectors}",
        SPARSE: f"weights of the words of {made.rows:,} texts",
    }
    several = f"what the heads {encoder.kind} make of {made.rows:,} texts, for biencoder alone (--head: one of them)"
    say(f"{made.output}: {what.get(encoder.kind, several)}")
