"""One more linear layer after the pooling."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.model.heads.dense import DenseHead
from biencoder.model.heads.projection import DenseLayer, principal_directions, projections
from biencoder.terminal import say


def add_dense(encoder: Encoder, dim: int, texts: Sequence[str]) -> None:
    """Put a linear layer after the pooling, and after the linear layers that are there already.

    It starts as the ``dim`` directions that keep most of the inner products of some texts' vectors (Eckart and Young
    1936), so that the model hardly changes at first. If ``dim`` is at least the number of dimensions, it keeps all.

    Args:
        encoder: with a dense head.
        dim: dimensions of a vector after the layer.
        texts: passages.

    Raises:
        UserError: the model makes a vector for each token.
    """
    if not isinstance(encoder.head, DenseHead):
        raise UserError(f"--add-dense {dim}: the model makes a vector for each token, and has its layer already")
    settings = encoder.settings
    encoder.adopt(replace(settings, normalize=False))
    weights = {"linear.weight": principal_directions(torch.from_numpy(encoder.encode_passages(texts)), dim)}
    layer = DenseLayer(encoder.head.full_dim, dim, bias=False, activation="Identity")
    encoder.head = encoder.head.followed_by(*projections([layer], layer.inputs, [weights])).to(encoder.device)
    encoder.adopt(replace(settings, layers=(*settings.layers, layer)))
    say(f"a linear layer from {layer.inputs:,} to {dim:,} dimensions; it starts as their principal directions")
