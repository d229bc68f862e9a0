"""Training pairs from the structure of documents: their titles, sentences and headings."""

from biencoder.config import PairsConfig
from biencoder.errors import UserError
from biencoder.model.files.pretrained import load_tokenizer
from biencoder.pairs.candidates import CandidatePairs
from biencoder.pairs.documents import read_documents
from biencoder.pairs.methods import METHODS, PASSAGE_LEAST, pairs_of
from biencoder.pairs.written import Written, write_pairs
from biencoder.terminal import ProgressLine


def pairs_by_structure(config: PairsConfig, total: int) -> Written:
    """Make the pairs of ``total`` documents and write them.

    Raises:
        UserError: documents, model or output cannot be used, or no pair is left.
    """
    if config.model is not None:  # an unusable model is refused before anything is written
        load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    with CandidatePairs() as candidates:
        _take_apart(config, candidates, total)
        return write_pairs(config, candidates, candidates.select(config.max_same_query), None)


def _take_apart(config: PairsConfig, candidates: CandidatePairs, total: int) -> None:
    methods = config.methods or tuple(METHODS)
    with ProgressLine(total, "documents") as line:
        for number, document in enumerate(read_documents(config.documents), 1):
            key = document.key
            for pair in pairs_of(document, methods, seed=config.seed, passage_words=config.passage_words):
                candidates.add(pair, key)
            line.update(number)
    if not len(candidates):
        raise UserError(
            f"--documents {config.documents}: {total:,} documents gave no pair by "
            f"{', '.join(methods)}; a document needs more than one sentence, a title or headings, and a passage at "
            f"least {PASSAGE_LEAST} words"
        )
