"""Training pairs whose questions a language model writes about documents."""

import itertools
from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from biencoder.config import PairsConfig
from biencoder.config.choices import AUTO
from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.pairs.asking.endpoint import Endpoint
from biencoder.pairs.asking.generate import Answers, Asking, Interview, choose, count_calls, read_answers
from biencoder.pairs.asking.journal import Journal
from biencoder.pairs.asking.questions import load_prompt
from biencoder.pairs.asking.round_trip import round_trip
from biencoder.pairs.candidates import CandidatePairs
from biencoder.pairs.documents import Document, read_documents
from biencoder.pairs.methods import PASSAGE_LEAST, Pair
from biencoder.pairs.written import GENERATED, Written, write_pairs
from biencoder.retrieval.text_encoder import TextEncoder
from biencoder.terminal import ProgressLine, say


def pairs_by_questions(config: PairsConfig, total: int) -> Written:
    """Let a language model ask about ``total`` documents, and write the questions that find their own passage.

    Raises:
        UserError: documents, prompt, endpoint, model or output cannot be used, or no question is left.
    """
    assert config.generator is not None
    assert config.generator_model is not None
    assert config.model is not None
    asking = Asking(
        load_prompt(config.prompt_file), config.generator_model, config.questions_per_passage, config.passage_words
    )
    endpoint = Endpoint(config.generator, config.generator_model, config.request_timeout)
    chosen = choose(asking, read_documents(config.documents), config.max_calls, config.seed)
    if not chosen.any():
        raise UserError(
            f"--documents {config.documents}: none of {total:,} documents has the {PASSAGE_LEAST} words that "
            "a passage needs"
        )
    # Loaded before you pay for any call.
    encoder = Encoder.load(config.model, precision=AUTO, trust_remote_code=config.trust_remote_code)
    with Journal(config.output.with_name(config.output.name + ".journal")) as journal:
        refused = _ask(config, asking, endpoint, journal, chosen)
        with CandidatePairs() as candidates:
            answers, owners = _gather(config, asking, journal, chosen, candidates)
            # The journal does not hold the calls that the endpoint refused.
            answers.faults.update({kind: n for kind, n in refused.items() if kind not in answers.faults})
            if answers.faults:
                say(f"answers that were not used: {answers.describe()}")
            if not len(candidates):
                raise UserError(f"--generator {endpoint.url}: no question came back ({answers.describe()})")
            found = _round_trip(config, encoder, asking, journal, chosen, candidates, owners)
            written = write_pairs(config, candidates, candidates.select(config.max_same_query), found)
        journal.remove()
    return written


def _chosen(config: PairsConfig, chosen: NDArray[np.bool_]) -> Iterator[Document]:
    return itertools.compress(read_documents(config.documents), chosen)


def _ask(
    config: PairsConfig, asking: Asking, endpoint: Endpoint, journal: Journal, chosen: NDArray[np.bool_]
) -> Counter[str]:
    """Make the calls; return how many answers of each kind cannot be used, including those in the journal."""
    calls = count_calls(asking, _chosen(config, chosen), journal)
    say(
        f"{calls.calls:,} calls to {asking.model} at {endpoint.url}, {calls.characters:,} characters in all; "
        f"{config.concurrency} at a time"
    )
    if calls.known:
        say(f"{calls.known:,} answers are already in {journal.path}, from an earlier run")
    if calls.known < len(journal):
        say(
            f"{len(journal) - calls.known:,} other answers in it belong to another prompt, model or text; "
            "they are not used"
        )
    if not calls.calls:
        return Counter()
    with ProgressLine(calls.calls, "questions") as line:
        try:
            interview = Interview(asking, endpoint, journal, config.concurrency)
            return interview.run(_chosen(config, chosen), line.update).faults
        except UserError as error:
            safe = f"; {len(journal):,} answers are safe in {journal.path}; type the same command again to continue"
            raise UserError(f"{error}{safe if len(journal) else ''}") from None


def _gather(
    config: PairsConfig, asking: Asking, journal: Journal, chosen: NDArray[np.bool_], candidates: CandidatePairs
) -> tuple[Answers, NDArray[np.int64]]:
    """Add the questions in the order of the documents; return the counts of answers and each question's passage."""
    answers, owners = Answers(), array("q")
    rows = read_answers(asking, _chosen(config, chosen), journal, answers)
    for number, (document, passage, questions) in enumerate(rows):
        for question in questions:
            candidates.add(Pair(question, passage, GENERATED), document.key)
            owners.append(number)
    return answers, np.array(owners, dtype=np.int64)


def _round_trip(
    config: PairsConfig,
    encoder: TextEncoder,
    asking: Asking,
    journal: Journal,
    chosen: NDArray[np.bool_],
    candidates: CandidatePairs,
    owners: NDArray[np.int64],
) -> NDArray[np.bool_]:
    passages = (text for _, text, _ in read_answers(asking, _chosen(config, chosen), journal, Answers()))
    questions = zip((pair.query for pair in candidates), owners.tolist(), strict=True)
    passages_at_most = int(chosen.sum())  # a refused passage is not encoded
    with ProgressLine(passages_at_most + len(owners), "encode") as line:
        return round_trip(encoder, passages, questions, config.round_trip_k, line.update)
