"""``biencoder pairs``: documents to training pairs, by their structure or with questions from a language model."""

import itertools
import shlex
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import orjson
from numpy.typing import NDArray

from biencoder.commands import check
from biencoder.config import CheckConfig, PairsConfig
from biencoder.config.choices import AUTO
from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.pairs.candidates import Candidates, Selection
from biencoder.pairs.documents import Document, read_documents
from biencoder.pairs.endpoint import Endpoint
from biencoder.pairs.generate import Answers, Asking, Interview, choose, count_calls, read_answers
from biencoder.pairs.journal import Journal
from biencoder.pairs.methods import METHODS, PASSAGE_LEAST, Pair, pairs_of
from biencoder.pairs.questions import load_prompt
from biencoder.pairs.round_trip import round_trip
from biencoder.terminal import Progress, say, table

if TYPE_CHECKING:
    from biencoder.retrieval.encode import TextEncoder

GENERATED = "question"  # the method of a pair whose query a language model wrote
SHOWN_EXAMPLES = 3
SHOWN_COMMON = 5
SHOWN = 160  # characters of a text in the terminal
SOME_MODEL = "BAAI/bge-small-en-v1.5"


@dataclass
class Written:
    """What became of the candidates.

    Attributes:
        counts: (method, fate) -> pairs; fates are ``found``, ``repeated``, ``common``, ``lost`` and ``kept``.
        examples: a few of the pairs kept.
        common: some of the queries that too many documents share.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Pair] = field(default_factory=list)
    common: list[str] = field(default_factory=list)


def run(config: PairsConfig) -> None:
    """The command: make the pairs, write them, audit them, and say what to type next.

    Raises:
        UserError: documents, prompt, endpoint, model or output cannot be used, or no pair is left.
    """
    _refuse_output(config)
    total = sum(1 for _ in read_documents(config.documents))
    if not total:
        raise UserError(f"--documents {config.documents}: the file holds no document")
    if config.generator is None:
        if config.model is not None:  # it is refused before anything is written
            from biencoder.model.files.pretrained import load_tokenizer

            load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
        with Candidates() as candidates:
            _take_apart(config, candidates, total)
            written = _write(config, candidates, candidates.select(config.max_same_query), None)
    else:
        written = _generate(config, total)
    _report(config, written, total)


def _refuse_output(config: PairsConfig) -> None:
    output = config.output
    if output.suffix != ".jsonl" or output.is_dir():
        raise UserError(f"--output {output}: must be a file that ends in .jsonl")
    if output.exists() and config.documents.exists() and output.samefile(config.documents):
        raise UserError(f"--output {output}: is the file of the documents; name another")
    if output.exists() and config.generator is not None:
        raise UserError(
            f"--output {output}: exists, and making it again would ask for every question again; "
            "name another file, or remove this one"
        )


def _take_apart(config: PairsConfig, candidates: Candidates, total: int) -> None:
    methods = config.methods or tuple(METHODS)
    with Progress(total, "documents") as line:
        for number, document in enumerate(read_documents(config.documents), 1):
            key = document.key
            for pair in pairs_of(document, methods, seed=config.seed, passage_words=config.passage_words):
                candidates.add(pair, key)
            line.update(number)
    if not len(candidates):
        raise UserError(
            f"--documents {config.documents}: no pair could be made of {total:,} documents by "
            f"{', '.join(methods)}; a document needs more than one sentence, a title or headings, and a passage at "
            f"least {PASSAGE_LEAST} words"
        )


def _generate(config: PairsConfig, total: int) -> Written:
    from biencoder.model.encoder import Encoder

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
            f"--documents {config.documents}: none of {total:,} documents has the {PASSAGE_LEAST} words of a passage"
        )
    # Before anything is paid for.
    encoder = Encoder.load(config.model, precision=AUTO, trust_remote_code=config.trust_remote_code)
    with Journal(config.output.with_name(config.output.name + ".journal")) as journal:
        refused = _ask(config, asking, endpoint, journal, chosen)
        with Candidates() as candidates:
            answers, owners = _gather(config, asking, journal, chosen, candidates)
            # What the endpoint refused is not in the journal.
            answers.faults.update({kind: n for kind, n in refused.items() if kind not in answers.faults})
            if answers.faults:
                say(f"answers left out: {answers.describe()}")
            if not len(candidates):
                raise UserError(f"--generator {endpoint.url}: no question came back ({answers.describe()})")
            found = _round_trip(config, encoder, asking, journal, chosen, candidates, owners)
            written = _write(config, candidates, candidates.select(config.max_same_query), found)
        journal.remove()
    return written


def _chosen(config: PairsConfig, chosen: NDArray[np.bool_]) -> Iterator[Document]:
    return itertools.compress(read_documents(config.documents), chosen)


def _ask(
    config: PairsConfig, asking: Asking, endpoint: Endpoint, journal: Journal, chosen: NDArray[np.bool_]
) -> Counter[str]:
    """Make the calls; return the kinds of answers that came back unusable, the journal's own among them."""
    calls = count_calls(asking, _chosen(config, chosen), journal)
    say(
        f"{calls.calls:,} calls to {asking.model} at {endpoint.url}, {calls.characters:,} characters to send in all; "
        f"{config.concurrency} at a time"
    )
    if calls.known:
        say(f"{calls.known:,} answers of an earlier run are in {journal.path} and are not asked for again")
    if calls.known < len(journal):
        say(f"{len(journal) - calls.known:,} other answers in it are to another prompt, model or text: not used")
    if not calls.calls:
        return Counter()
    with Progress(calls.calls, "questions") as line:
        try:
            return (
                Interview(asking, endpoint, journal, config.concurrency)
                .run(_chosen(config, chosen), line.update)
                .faults
            )
        except UserError as error:
            kept = f"; {len(journal):,} answers are kept in {journal.path}: type the command again to go on"
            raise UserError(f"{error}{kept if len(journal) else ''}") from None


def _gather(
    config: PairsConfig, asking: Asking, journal: Journal, chosen: NDArray[np.bool_], candidates: Candidates
) -> tuple[Answers, NDArray[np.int64]]:
    """Add the questions in the documents' order; return what the answers held, and each question's passage."""
    answers, owners = Answers(), array("q")
    rows = read_answers(asking, _chosen(config, chosen), journal, answers)
    for number, (document, passage, questions) in enumerate(rows):
        for question in questions:
            candidates.add(Pair(question, passage, GENERATED), document.key)
            owners.append(number)
    return answers, np.array(owners, dtype=np.int64)


def _round_trip(
    config: PairsConfig,
    encoder: "TextEncoder",
    asking: Asking,
    journal: Journal,
    chosen: NDArray[np.bool_],
    candidates: Candidates,
    owners: NDArray[np.int64],
) -> NDArray[np.bool_]:
    passages = (text for _, text, _ in read_answers(asking, _chosen(config, chosen), journal, Answers()))
    questions = zip((pair.query for pair in candidates), owners.tolist(), strict=True)
    answered = int(chosen.sum())  # at most: a refused passage is not encoded
    with Progress(answered + len(owners), "encode") as line:
        return round_trip(encoder, passages, questions, config.round_trip_k, line.update)


def _write(
    config: PairsConfig, candidates: Candidates, selection: Selection, found: NDArray[np.bool_] | None
) -> Written:
    """Write the pairs that are left, all of them or no file; count the rest."""
    kept = selection.kept if found is None else selection.kept & found
    if not kept.any():
        where = "--round-trip-k or --max-same-query" if found is not None else "--max-same-query"
        raise UserError(
            f"none of {len(kept):,} pairs is left: {int(selection.repeated.sum()):,} repeat another, "
            f"{int(selection.common.sum()):,} have a query of too many documents"
            + ("" if found is None else f", {int((~found).sum()):,} questions did not find their own passage")
            + f"; raise {where}"
        )
    places = np.flatnonzero(kept)
    shown = set(places[np.arange(SHOWN_EXAMPLES) * len(places) // SHOWN_EXAMPLES].tolist())
    written = Written()
    with atomic_write(config.output, "wb") as file:
        for number, pair in enumerate(candidates):
            fate = _fate(number, selection, found)
            written.counts[pair.method, "found"] += 1
            written.counts[pair.method, fate] += 1
            if fate == "common" and len(written.common) < SHOWN_COMMON and pair.query not in written.common:
                written.common.append(pair.query)
            if fate == "kept":
                row = {"query": pair.query, "pos": [pair.passage], "neg": [], "method": pair.method}
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            if number in shown:
                written.examples.append(pair)
    return written


def _fate(number: int, selection: Selection, found: NDArray[np.bool_] | None) -> str:
    if selection.repeated[number]:
        return "repeated"
    if selection.common[number]:
        return "common"
    return "kept" if found is None or found[number] else "lost"


def _report(config: PairsConfig, written: Written, total: int) -> None:
    fates = {"found": "pairs", "repeated": "repeated", "common": f"query of over {config.max_same_query} documents"}
    if config.generator is not None:
        fates["lost"] = f"passage not in the top {config.round_trip_k}"
    fates["kept"] = "kept"
    methods = [name for name in (*METHODS, GENERATED) if written.counts[name, "found"]]
    rows = [[name, *(f"{written.counts[name, fate]:,}" for fate in fates)] for name in methods]
    table(rows, ["method", *fates.values()])
    if written.common:
        say("queries of too many documents, for example: " + ", ".join(_shorten(query) for query in written.common))
    for pair in written.examples:
        say(f"\n{pair.method}: {_shorten(pair.query)}\n  -> {_shorten(pair.passage)}")
    say()
    check.run(CheckConfig(train_data=(config.output,), model=config.model, trust_remote_code=config.trust_remote_code))
    kept = sum(count for (_, fate), count in written.counts.items() if fate == "kept")
    model, output = shlex.quote(config.model or SOME_MODEL), shlex.quote(str(config.output))
    say(
        f"\n{config.output}: {kept:,} pairs of {total:,} documents. Train on them:\n"
        f"  biencoder train --model {model} --train-data {output} --output-dir my-model"
    )


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
