"""From a model with one vector a text to one with a vector for each token."""

import string
from collections.abc import Sequence
from dataclasses import replace

import torch

from biencoder.config import TrainConfig
from biencoder.config.choices import MEAN, MULTI
from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.model.heads.multi_vector import MultiVectorHead
from biencoder.model.heads.projection import DenseLayer, principal_directions, projections
from biencoder.model.representations.ragged import TokenVectors
from biencoder.terminal import say

TOKEN_DIM = 128  # of a token's vector (Khattab and Zaharia 2020, section 4.1)


def make_multi_vector(encoder: Encoder, dim: int, texts: Sequence[str], *, skip_punctuation: bool) -> None:
    """Replace the head by one with a vector for each token.

    A linear layer, the same for all tokens, makes the vectors. It starts as the ``dim`` directions that keep most of
    the inner products of the tokens of some texts (Eckart and Young 1936).

    Args:
        encoder: with a dense head and no linear layers.
        dim: dimensions of a token's vector.
        texts: passages.
        skip_punctuation: a passage has no vectors for its punctuation.
    """
    width = int(encoder.backbone.config.hidden_size)
    skipped = tuple(string.punctuation) if skip_punctuation else ()
    settings = replace(encoder.settings, heads=MULTI, pooling=MEAN, normalize=True, similarity=None, skipped=skipped)
    encoder.adopt(settings)
    encoder.head = MultiVectorHead(width).to(encoder.device)
    found = encoder.represent_passages(texts)
    assert isinstance(found, TokenVectors)
    weights = {"linear.weight": principal_directions(torch.from_numpy(found.vectors), dim)}
    layer = DenseLayer(width, dim, bias=False, activation="Identity")
    encoder.head = MultiVectorHead(width, layers=projections([layer], width, [weights])).to(encoder.device)
    encoder.adopt(replace(settings, layers=(layer,)))
    say(f"the vectors of tokens start as the {dim:,} principal directions of the model's {width:,}")


def expand_queries(encoder: Encoder, config: TrainConfig) -> None:
    """Fill short queries with mask tokens from now on, if that is asked for.

    Raises:
        UserError: the model has one vector a text, there is no mask token, or queries are shorter.
    """
    length = config.query_expansion
    if length is None:
        return
    flag = f"--query-expansion {length}"
    if not encoder.settings.multi:
        raise UserError(f"{flag} needs --heads {MULTI}: a model with one vector a text compares no mask tokens")
    if encoder.tokenizer.mask_token_id is None:
        raise UserError(f"{flag}: the tokenizer of {config.model} has no mask token")
    if length > config.query_max_len:
        raise UserError(f"{flag} is more than --query-max-len {config.query_max_len}")
    encoder.adopt(replace(encoder.settings, query_expansion=length))
