"""``biencoder check``: audits the training data without training."""

from dataclasses import replace

from biencoder.config import CheckConfig, data_sets_of
from biencoder.data.audit import WARN, audit
from biencoder.data.data_sets import read_data_sets
from biencoder.data.files.beir import load_collection
from biencoder.model.files.pretrained import load_tokenizer
from biencoder.model.tokens import token_counter
from biencoder.terminal import say, table


def run(config: CheckConfig) -> None:
    """The command: read the data, print what is wrong with it."""
    lengths = None
    if config.model is not None:
        lengths = token_counter(load_tokenizer(config.model, trust_remote_code=config.trust_remote_code))
    collection = None if config.eval_data is None else load_collection(config.eval_data, config.eval_split)
    data_sets = data_sets_of(config.train_data)
    scored = [replace(each, scores_out_of=each.scores_out_of or config.scores_out_of) for each in data_sets]
    examples = read_data_sets(scored, config.on_bad_row)
    names = [data_set.name or "" for data_set in data_sets]
    found = audit(examples, collection, lengths, config.query_max_len, config.passage_max_len, names)
    rows = found.rows(config.group_size)
    if collection is not None:
        say(f"evaluation: {collection.description}")
    table(rows, ["data", "found", ""])
    if found.bad_rows:
        total = sum(found.skipped.values())
        say(f"\nrows left out; the first {len(found.bad_rows)} of {total:,}:")
        for message in found.bad_rows:
            say(f"  {message}")
    warnings = sum(verdict == WARN for _, _, verdict in rows)
    say(f"\n{warnings} thing{'s' * (warnings != 1)} to look at" if warnings else "\nnothing wrong was found")
