"""From a sparse model to one whose queries take their weights from a table."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from biencoder.model.encoder import Encoder
from biencoder.model.heads.query_table import QueryTableHead
from biencoder.model.new_heads.sparse import inverse_document_frequency, mean_score
from biencoder.terminal import say


def make_query_table(encoder: Encoder, queries: Sequence[str], answers: Sequence[str], passages: Sequence[str]) -> None:
    """Give queries a table, and leave passages the head that there is.

    A token's weight starts as its inverse document frequency (Spärck Jones 1972) in some passages. If the head for
    passages is no masked-language head, all are scaled so that a query and its passage score 1 on average, as cosines
    would at best.

    Args:
        encoder: with a sparse head.
        queries: of some rows.
        answers: passages that answer these.
        passages: many, in which tokens are counted.
    """
    tokens = encoder.tokenize(passages, encoder.settings.passage_prompt)
    frequency = inverse_document_frequency(tokens, int(encoder.backbone.config.vocab_size))
    weights_V = torch.from_numpy(frequency).float().to(encoder.device)
    encoder.head = QueryTableHead(encoder.head, weights_V, encoder.unspoken_ids).to(encoder.device)
    encoder.adopt(replace(encoder.settings, query_table=True))
    if not encoder.settings.expands:
        score = mean_score(encoder, queries, answers)
        with torch.no_grad():
            encoder.head.weights_V.div_(score)
    say(f"queries start with the inverse document frequencies of tokens in {len(passages):,} of your passages")
