"""A static model out of a transformer: what the transformer makes of each token of its vocabulary alone.

After Model2Vec (Tulkens and van Dongen 2024): every token goes through the model, the vectors lose their mean and all
but their principal directions, and frequent tokens weigh less, as in SIF (Arora et al. 2017).

Shapes: V tokens of the vocabulary, H dimensions of the model's vectors, D of the static model's.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase

from biencoder.config.choices import DENSE, MEAN
from biencoder.errors import UserError
from biencoder.model.architectures.static import StaticModel
from biencoder.model.architectures.table import enable_packing
from biencoder.model.encoder import ANY_LENGTH, Encoder
from biencoder.model.files.settings import ModelSettings
from biencoder.model.files.static import without_special_tokens
from biencoder.model.heads.dense import DenseHead
from biencoder.model.heads.projection import principal_directions
from biencoder.model.tokens import Tokens

StartProgress = Callable[[int, int], Callable[[int], None]]

SMOOTHING = 1e-4  # of SIF: a token as frequent as this has half its weight
UNUSED = re.compile(r"\[unused\d+\]")


def distill(
    encoder: Encoder, dim: int, *, texts: Iterable[str] | None = None, progress: StartProgress | None = None
) -> Encoder:
    """A static model that takes each token for what ``encoder`` makes of the token alone.

    Args:
        encoder: the model to distill; its tokenizer is a fast one.
        dim: D, dimensions of a vector.
        texts: show how frequent each token is; without them, the order of the vocabulary does (Zipf's law).
        progress: called once with the number of tokens and 0. The function that it returns is called with the number
            done.

    Raises:
        UserError: the model is static itself, or has fewer than ``dim`` dimensions.
    """
    if encoder.kind != DENSE:
        raise UserError(f"a static model has one vector for each text, and the model's head is {encoder.kind}")
    if encoder.settings.static:
        raise UserError("the model is a static model already; name one with layers")
    if dim > encoder.dim:
        raise UserError(f"--dim {dim}: the model makes {encoder.dim} dimensions, and a static model cannot add any")
    tokenizer = _static_tokenizer(encoder)
    size = 1 + max(tokenizer.get_vocab().values())
    words = _words(encoder.tokenizer)
    vectors = _vectors_of_tokens(encoder, words, progress)
    weights = sif_weights(_shares(words, size, tokenizer, texts))
    table = np.zeros((size, dim), np.float32)
    table[words] = principal_components(vectors, dim) * weights[words, None]
    settings = ModelSettings(
        pooling=MEAN,
        normalize=encoder.settings.normalize,
        max_length=ANY_LENGTH,
        similarity=encoder.settings.similarity,
        static=True,
    )
    backbone = StaticModel.of(torch.from_numpy(table))
    head = DenseHead(dim, pooling=MEAN, normalize=bool(settings.normalize))
    first_position = enable_packing(backbone)
    return Encoder(backbone, head, tokenizer, settings, first_position=first_position).eval()


def sif_weights(shares_V: NDArray[np.float64]) -> NDArray[np.float32]:
    """``a / (a + p)`` for tokens of frequency p (Arora et al. 2017, eq. 3)."""
    weights: NDArray[np.float32] = (SMOOTHING / (SMOOTHING + shares_V)).astype(np.float32)
    return weights


def principal_components(vectors_NH: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Vectors less their mean, in the ``dim`` directions in which they differ most: ``[N, dim]``."""
    centred = vectors_NH.astype(np.float64) - vectors_NH.mean(axis=0, dtype=np.float64)
    directions = principal_directions(torch.from_numpy(centred), dim).numpy()
    components: NDArray[np.float32] = (centred @ directions.T).astype(np.float32)
    return components


def _static_tokenizer(encoder: Encoder) -> PreTrainedTokenizerBase:
    """The same tokenizer with nothing before or behind a text; it puts letters in lower case if the model does."""
    if not encoder.tokenizer.is_fast:
        raise UserError("the model's tokenizer is not one of the tokenizers library, which static models need")
    copied = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    tokenizer = without_special_tokens(copied)
    if encoder.settings.lowercase:
        backend = tokenizer.backend_tokenizer
        steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _words(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """The ids of the tokens that stand for text."""
    special = set(tokenizer.all_special_ids)
    return np.array(
        sorted(i for token, i in tokenizer.get_vocab().items() if i not in special and not UNUSED.fullmatch(token))
    )


def _vectors_of_tokens(
    encoder: Encoder, words: NDArray[np.int64], progress: StartProgress | None
) -> NDArray[np.float32]:
    """What the model makes of each token alone, before vectors are scaled to length 1."""
    settings = encoder.settings
    before, after = _around(encoder.tokenizer, words)
    texts: list[Tokens] = [np.array([*before, word, *after], dtype=np.int32) for word in words]
    encoder.adopt(replace(settings, normalize=False))
    try:
        return encoder.encode_tokens(texts, None if progress is None else progress(len(texts), 0))
    finally:
        encoder.adopt(settings)


def _around(tokenizer: PreTrainedTokenizerBase, words: NDArray[np.int64]) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens that the tokenizer puts before and behind a text."""
    text = tokenizer.convert_ids_to_tokens(int(words[len(words) // 2]))
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def _shares(
    words: NDArray[np.int64], size: int, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] | None
) -> NDArray[np.float64]:
    """How frequent each of V tokens is, as a share of all tokens."""
    counts = np.zeros(size)
    if texts is None:
        counts[words] = 1 / np.arange(1, len(words) + 1)
    else:
        for text in texts:
            np.add.at(counts, tokenizer(text)["input_ids"], 1)
    shares: NDArray[np.float64] = counts / max(counts.sum(), 1)
    return shares
