"""``biencoder pairs``: makes training pairs from documents, by structure or with a language model's questions."""

import shlex

from biencoder.commands.data import check
from biencoder.config import CheckConfig, PairsConfig
from biencoder.errors import UserError, require_package
from biencoder.pairs.by_structure import pairs_by_structure
from biencoder.pairs.documents import read_documents
from biencoder.pairs.methods import METHODS
from biencoder.pairs.written import GENERATED, Written
from biencoder.terminal import say, shorten, table

SOME_MODEL = "BAAI/bge-small-en-v1.5"


def run(config: PairsConfig) -> None:
    """The command: make the pairs, write them, audit them, and say what to type next.

    Raises:
        UserError: documents, prompt, endpoint, model or output cannot be used, or no pair is left.
    """
    _refuse_output(config)
    total = sum(1 for _ in read_documents(config.documents))
    if not total:
        raise UserError(f"--documents {config.documents}: the file holds no document")
    make = pairs_by_structure
    if config.generator is not None:
        require_package("httpx2", "--generator", "pairs")
        from biencoder.pairs.by_questions import pairs_by_questions as make  # with the HTTP client of that extra
    _report(config, make(config, total), total)


def _refuse_output(config: PairsConfig) -> None:
    output = config.output
    if output.suffix != ".jsonl" or output.is_dir():
        raise UserError(f"--output {output}: must be a file that ends in .jsonl")
    if output.exists() and config.documents.exists() and output.samefile(config.documents):
        raise UserError(f"--output {output}: is the file of the documents; name another file")
    if output.exists() and config.generator is not None:
        raise UserError(
            f"--output {output}: exists, and to make it again would ask for every question again; "
            "name another file, or remove this one"
        )


def _report(config: PairsConfig, written: Written, total: int) -> None:
    fates = {
        "found": "pairs",
        "repeated": "repeated",
        "common": f"same query for over {config.max_same_query} documents",
    }
    if config.generator is not None:
        fates["lost"] = f"passage not in the top {config.round_trip_k}"
    fates["written"] = "written"
    methods = [name for name in (*METHODS, GENERATED) if written.counts[name, "found"]]
    rows = [[name, *(f"{written.counts[name, fate]:,}" for fate in fates)] for name in methods]
    table(rows, ["method", *fates.values()])
    if written.common:
        shared = ", ".join(shorten(query) for query in written.common)
        say(f"queries that too many documents share, for example: {shared}")
    for pair in written.examples:
        say(f"\n{pair.method}: {shorten(pair.query)}\n  -> {shorten(pair.passage)}")
    say()
    check.run(CheckConfig(train_data=(config.output,), model=config.model, trust_remote_code=config.trust_remote_code))
    pairs = sum(count for (_, fate), count in written.counts.items() if fate == "written")
    model, output = shlex.quote(config.model or SOME_MODEL), shlex.quote(str(config.output))
    say(
        f"\n{config.output}: {pairs:,} pairs of {total:,} documents. Train on them:\n"
        f"  biencoder train --model {model} --train-data {output} --output-dir my-model"
    )
