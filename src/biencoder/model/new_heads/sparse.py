"""From a model with one vector a text to one with a weight for each token."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biencoder.config.choices import MEAN, SPARSE
from biencoder.model.embedding import hidden_states
from biencoder.model.encoder import Encoder
from biencoder.model.heads.sparse import SparseHead
from biencoder.model.packing import chunks
from biencoder.model.representations.ragged import Ragged
from biencoder.model.tokens import Tokens
from biencoder.terminal import say

RIDGE = 1e-3  # of the mean variance of a hidden dimension
CHUNK_TOKENS = 4096


def make_sparse(encoder: Encoder, queries: Sequence[str], passages: Sequence[str]) -> None:
    """Replace the head by one with a weight for each token.

    The weight starts as the linear function of the hidden state that comes nearest to the token's inverse document
    frequency (Spärck Jones 1972) in some passages, so that a first search is much like one by shared rare words. The
    weights are scaled so that a query and its passage score 1 on average, as cosines would at best.

    Args:
        encoder: with a dense head and no linear layers.
        queries: of some rows.
        passages: those that answer them.
    """
    tokens = encoder.tokenize(passages, encoder.settings.passage_prompt)
    width, vocabulary = int(encoder.backbone.config.hidden_size), int(encoder.backbone.config.vocab_size)
    head = SparseHead(width, vocabulary, encoder.tokenizer.all_special_ids).to(encoder.device)
    solution = _nearest_to(encoder, tokens, inverse_document_frequency(tokens, vocabulary))
    with torch.no_grad():
        head.linear.weight.copy_(solution[:-1])
        head.linear.bias.copy_(solution[-1:])
    encoder.adopt(replace(encoder.settings, heads=SPARSE, pooling=MEAN, normalize=False, similarity="dot"))
    encoder.head = head
    score = mean_score(encoder, queries, passages)
    with torch.no_grad():
        for parameter in head.linear.parameters():
            parameter.div_(score**0.5)
    say("the weights of tokens start near their inverse document frequency in your passages")


def mean_score(encoder: Encoder, queries: Sequence[str], passages: Sequence[str]) -> float:
    """The mean similarity of queries to the passages of the same number, by a sparse head; above 0."""
    asked, found = encoder.represent_queries(queries), encoder.represent_passages(passages)
    assert isinstance(asked, Ragged)
    assert isinstance(found, Ragged)
    return max(float(asked.padded().pair_scores(found.padded()).mean()), 1e-6)


def inverse_document_frequency(texts: Sequence[Tokens], vocabulary: int) -> NDArray[np.float64]:
    """``ln((N + 1) / (n + 0.5))`` of each token, where n of N texts have it: ``[vocabulary]``."""
    having = np.bincount(np.concatenate([np.unique(text) for text in texts]), minlength=vocabulary)
    return np.log((len(texts) + 1) / (having + 0.5))


def _nearest_to(encoder: Encoder, texts: Sequence[Tokens], wanted: NDArray[np.float64]) -> Tensor:
    """Ridge regression from hidden states to the number that each token should have: ``[H + 1]``, the constant last."""
    width = int(encoder.backbone.config.hidden_size)
    gram, moment = torch.zeros(width + 1, width + 1).double(), torch.zeros(width + 1).double()
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        for chunk in chunks(texts, CHUNK_TOKENS):
            batch = chunk.batch.to(encoder.device)
            hidden_TH, _ = hidden_states(encoder.backbone, batch, encoder.first_position, lambda _: None)
            rows = torch.cat([hidden_TH.double().cpu(), torch.ones(len(hidden_TH), 1).double()], dim=1)
            gram += rows.T @ rows
            moment += rows.T @ torch.from_numpy(wanted[batch.input_ids.cpu().numpy()])
    encoder.train(training)
    gram[:-1, :-1] += RIDGE * gram.diagonal()[:-1].mean() * torch.eye(width)
    solution: Tensor = torch.linalg.solve(gram, moment)
    return solution.float().to(encoder.device)
