"""From a model with one vector a text to one with further heads beside it."""

from collections.abc import Sequence
from dataclasses import replace

from biencoder.config.choices import DENSE, MULTI, SPARSE
from biencoder.model.encoder import Encoder
from biencoder.model.files.heads.combined import USUAL_WEIGHTS
from biencoder.model.heads.combined import CombinedHead
from biencoder.model.heads.head import Head
from biencoder.model.heads.multi_vector import MultiVectorHead
from biencoder.model.new_heads.multi_vector import make_multi_vector
from biencoder.model.new_heads.sparse import make_sparse


def make_combined(
    encoder: Encoder, heads: str, dim: int | None, queries: Sequence[str], passages: Sequence[str]
) -> None:
    """Put other heads beside the one that there is. They start as they would alone.

    Args:
        encoder: with a dense head and no linear layers.
        heads: the kinds of all heads, with commas between them.
        dim: dimensions of a token's vector; None without such a head.
        queries: of some rows.
        passages: those that answer them.
    """
    settings, dense = encoder.settings, encoder.head
    parts: dict[str, Head] = {DENSE: dense}
    kinds = tuple(heads.split(","))
    layers = settings.layers
    if SPARSE in kinds:
        make_sparse(encoder, queries, passages)
        parts[SPARSE] = encoder.head
    skips_first = encoder.tokenizer.cls_token_id is not None  # it stands for the whole text, as the first head does
    if MULTI in kinds:
        assert dim is not None
        encoder.head = dense
        encoder.adopt(settings)
        make_multi_vector(encoder, dim, passages, skip_punctuation=False)
        layers = encoder.settings.layers
        assert isinstance(encoder.head, MultiVectorHead)
        encoder.head.skips_first = skips_first
        parts[MULTI] = encoder.head
    weights = tuple(USUAL_WEIGHTS[kind] for kind in kinds)
    encoder.head = CombinedHead(parts, weights).to(encoder.device)
    encoder.adopt(replace(settings, heads=heads, weights=weights, skips_first=skips_first, layers=layers))
