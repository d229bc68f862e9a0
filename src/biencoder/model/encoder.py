"""The encoder: a backbone and a head. It turns texts into representations of them and knows no loss.

Shapes: N texts, D dimensions of a vector.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from biencoder.config.choices import AUTO, CLS, DENSE, FP32, LAST, MEAN
from biencoder.config.shared import EncoderConfig, EncodingOptions
from biencoder.device.ahead import made_ahead, one_behind
from biencoder.device.choice import autocast, choose_device, choose_precision, facts, placed
from biencoder.errors import UserError
from biencoder.model.adapting.causality import is_decoder
from biencoder.model.architectures.native_layer import prepared_weights
from biencoder.model.architectures.table import enable_packing, fitting_precision, longest_text
from biencoder.model.embedding import hidden_states
from biencoder.model.files.pretrained import load_checked, load_tokenizer, loading, locate, weights_fingerprint
from biencoder.model.files.saving import save_model
from biencoder.model.files.settings import ModelSettings, read_settings
from biencoder.model.files.stored_head import StoredHead
from biencoder.model.heads.combined import CombinedHead
from biencoder.model.heads.head import Head
from biencoder.model.heads.query_table import QueryTableHead
from biencoder.model.packing import PackedBatch, chunks, pack
from biencoder.model.parallel.sharded import device_of, is_sharded
from biencoder.model.parallel.sharing import gathered, my_share, parted
from biencoder.model.representations import representation as representations
from biencoder.model.representations.combined import Combined
from biencoder.model.representations.combined_rows import CombinedVectors
from biencoder.model.representations.dense import Dense
from biencoder.model.representations.multi_vector import MultiVector
from biencoder.model.representations.ragged import (
    AnyVectors,
    Ragged,
    SparseVectors,
    TokenVectors,
    Vectors,
    in_order,
    row_size,
)
from biencoder.model.representations.representation import Representation
from biencoder.model.representations.sparse import Sparse
from biencoder.model.tokens import Tokens, expanded, marked, skipped_ids, tokenize, unspoken

LONG_TEXT = 512  # tokens; few texts have more, whatever a model takes
ANY_LENGTH = 2**31 - 1  # tokens that a text is cut to where nothing limits it

Part = tuple[int, Callable[[], Sequence[Tokens]]]  # the number of its first text, and what tokenises it


class Encoder(nn.Module):
    """A model that turns queries and passages into representations: a transformers model with a head on top.

    Args:
        backbone: the transformers model, prepared by :func:`~biencoder.model.architectures.table.enable_packing`.
        head: turns hidden states into a representation of each text.
        tokenizer: the model's tokenizer; None for an encoder that only gets tokens.
        settings: pooling, normalisation, prompts and length.
        precision: ``fp32``, or ``bf16`` or ``fp16`` (autocast); None leaves autocast as the caller has set it.
            Representations are float32 in all of them.
        first_position: what ``enable_packing`` returned.

    Attributes:
        pool_tokens: a passage keeps one vector for every so many tokens, if it has a vector for each token.
    """

    pool_tokens = 1

    def __init__(
        self,
        backbone: PreTrainedModel,
        head: Head,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: ModelSettings,
        *,
        precision: str | None = "fp32",
        first_position: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self._tokenizer = tokenizer
        self.settings = settings
        self.precision = precision
        self.first_position = first_position

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        pooling: str = AUTO,
        normalize: bool | None = None,
        precision: str = FP32,
        device: str = AUTO,
        max_length: int | None = None,
        dropout: float | None = None,
        dim: int | None = None,
        pool_tokens: int = 1,
        head: str | None = None,
        merge_adapter: bool = True,
        trust_remote_code: bool = False,
        on_host: bool = False,
        flag: str = "--model",
    ) -> "Encoder":
        """Load a model folder, or a model of the hub by name.

        Args:
            path: folder with ``config.json`` and safetensors weights, or a hub name.
            pooling: ``auto`` (what the model's own files say; else last token for decoders, cls for the others).
            normalize: None for what the model's own files say, else yes.
            precision: ``fp32``, ``bf16``, ``fp16`` (on a GPU), or ``auto`` for the fastest that the hardware has.
            device: ``auto``, ``cpu``, ``cuda``.
            max_length: tokens a text is cut to; None for what the model's own files say.
            dropout: probability of every dropout in training; None for the model's own.
            dim: the first dimensions to keep of each vector, normalised again if the model normalises; None for all.
            pool_tokens: keep one vector for every so many tokens of a passage, for models with a vector for each token.
            head: the kind of head to use of a model that has several; None for all of them.
            merge_adapter: add a LoRA adapter to the weights of its base; else it stays one, and :meth:`save` writes it.
            trust_remote_code: run code that comes with the model, and let its configuration choose attention kernels.
            on_host: leave the weights in the memory of the host, for a caller that moves them to the device.
            flag: where a person named the model, for the message that there is none.

        Raises:
            UserError: no such model, a damaged one, one with parts that biencoder does not run, with fewer than ``dim``
                dimensions, or too large for the device.
        """
        folder = locate(path, flag)
        settings = read_settings(folder)
        target = choose_device(device)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        backbone = load_checked(folder, path, dropout, trust_remote_code=trust_remote_code, merge_adapter=merge_adapter)
        first_position = enable_packing(backbone)
        asked = resolve(_asked_of(settings, path, pooling, normalize, max_length, head), tokenizer, backbone)
        stored = StoredHead(folder, path, asked, settings.combined, backbone, tokenizer)
        with loading(path):
            loaded = stored.load(dim)
        encoder = cls(
            backbone,
            loaded,
            tokenizer,
            asked,
            precision=fitting_precision(choose_precision(precision, target), backbone.config, path),
            first_position=first_position,
        )
        encoder.pool_tokens = _checked_pool_tokens(pool_tokens, asked, path)
        return (encoder if on_host else placed(encoder, target, str(path))).eval()

    def forward(self, batch: PackedBatch) -> Representation:
        """The representation of each text of a packed batch on any device, in order; gradients flow."""
        if not isinstance(self.head, QueryTableHead) or not any(batch.is_marked):
            return self._read(batch)
        asked, found = ([n for n, mark in enumerate(batch.is_marked) if mark == side] for side in (True, False))
        batch = batch.to(self.device)
        parts: list[Representation] = [self.head.look_up(batch.only(asked))]
        if found:
            parts.append(self._read(batch.only(found)))
        return representations.in_order(parts, [torch.tensor(asked + found)])

    def _read(self, batch: PackedBatch) -> Representation:
        """:meth:`forward` for texts that go through the backbone."""
        with autocast(self.precision, self.device):
            batch = batch.to(self.device)
            read = batch.as_read() if self.settings.skipped else batch
            hidden_TD, starts = hidden_states(self.backbone, read, self.first_position, self.head.used_tokens)
        with torch.autocast(self.device.type, enabled=False):
            represented: Representation = self.head(hidden_TD, starts, batch)
        return represented

    def embed(self, batch: PackedBatch) -> Tensor:
        """One vector for each text of a packed batch on any device: ``[N, D]`` float32; gradients flow."""
        represented: Representation = self(batch)
        return represented.vectors

    def nothing(self) -> Representation:
        """The representation of no text at all."""
        hidden_TD = torch.zeros(1, int(self.backbone.config.hidden_size), device=self.device)
        batch = pack([[0]]).to(self.device)
        with torch.no_grad():
            represented: Representation = self.head(hidden_TD, batch.packing.starts, batch)
        return represented[:0]

    def adopt(self, settings: ModelSettings) -> None:
        """Take other settings; a head that pools does so as they say."""
        self.settings = settings
        assert settings.pooling is not None
        self.head = self.head.adopt(pooling=settings.pooling, normalize=bool(settings.normalize))

    def weigh_heads(self, weights: Sequence[float]) -> None:
        """Sum the similarities of several heads with these weights."""
        assert isinstance(self.head, CombinedHead)
        self.head.weights = tuple(weights)
        self.settings = replace(self.settings, weights=self.head.weights)

    def keep_head(self, head: str) -> None:
        """Go on with one of several heads."""
        assert isinstance(self.head, CombinedHead)
        self.head, self.settings = self.head.heads[head], self.settings.of_part(head)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return device_of(next(self.backbone.parameters()))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
            ValueError: the encoder was made without one.
        """
        if self._tokenizer is None:
            raise ValueError("this encoder has no tokenizer: give it tokens")
        return self._tokenizer

    @property
    def words(self) -> list[str]:
        """All tokens, by number."""
        size = int(self.backbone.config.vocab_size)
        known: list[str | None] = self.tokenizer.convert_ids_to_tokens(list(range(size)))
        return [f"[{number}]" if word is None else word for number, word in enumerate(known)]

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self.head.dim

    @property
    def text_size(self) -> int:
        """About how many numbers a long text takes: those of its vector, or of the vectors of its tokens."""
        return row_size(self.no_texts) * (1 if self.kind == DENSE else min(self.max_length, LONG_TEXT))

    @property
    def kind(self) -> str:
        """What it makes of a text: ``dense`` (one vector), ``multi`` (one for each token), ``sparse`` (weights).

        Several of them have commas between them.
        """
        return self.settings.heads

    @property
    def no_texts(self) -> Vectors:
        """What it makes of no text at all."""
        return np.empty((0, self.dim), np.float32) if self.kind == DENSE else self._rows(self.nothing())

    @property
    def max_length(self) -> int:
        """Tokens a text is cut to, special tokens included."""
        assert self.settings.max_length is not None
        return self.settings.max_length

    @property
    def fingerprint(self) -> str:
        """A digest of weights and settings: equal fingerprints give equal vectors."""
        made_by: tuple[Any, ...] = (self.settings, self.precision, self.dim, self.weights_fingerprint)
        made_by += (self.pool_tokens,) if self.pool_tokens > 1 else ()
        return hashlib.sha256(repr(made_by).encode()).hexdigest()

    @property
    def weights_fingerprint(self) -> str:
        """A digest of the weights alone."""
        return weights_fingerprint(self.backbone.state_dict(), self.head.state_dict())

    def tokenize(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[Tokens]:
        """Token ids of ``prompt + text``, cut to ``max_length`` tokens or to the model's."""
        prompted = [prompt + text for text in texts]
        if self.settings.lowercase:
            prompted = [text.lower() for text in prompted]
        return tokenize(self.tokenizer, prompted, min(max_length or self.max_length, self.max_length))

    def tokenize_queries(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[Tokens]:
        """:meth:`tokenize` for queries; those of a model that expands them are cut or filled to one length.

        Queries that a table holds the weights of are marked throughout, see :data:`Tokens`.
        """
        if self.settings.query_table:
            return [~ids for ids in self.tokenize(texts, prompt, max_length)]
        length = self.settings.query_expansion
        if length is None:
            return self.tokenize(texts, prompt, max_length)
        ids = self.tokenize(texts, prompt, min(length, max_length or length))
        return expanded(ids, length, self.tokenizer.mask_token_id)

    def tokenize_passages(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[Tokens]:
        """:meth:`tokenize` for passages: tokens that a multi-vector model does not compare are marked."""
        ids = self.tokenize(texts, prompt, max_length)
        return marked(ids, self._skipped_ids) if self.settings.skipped else ids

    @property
    def unspoken_ids(self) -> list[int]:
        """The special tokens that are no part of what a person wrote."""
        return unspoken(self.tokenizer)

    @property
    def _skipped_ids(self) -> np.ndarray:
        return skipped_ids(self.tokenizer, self.settings.skipped)

    def encode(
        self, texts: Sequence[str], prompt: str = "", progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of texts, with ``prompt`` before each; ranks that share their work encode them together.

        Args:
            texts: any number of them.
            prompt: put before each text.
            progress: called with the number of texts done.

        Returns:
            ``[N, D]`` float32, in the order of ``texts``.
        """
        return self._encode(self._parts(texts, partial(self.tokenize, prompt=prompt)), len(texts), progress)

    def encode_tokens(self, texts: Sequence[Tokens], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of texts that are token ids already, special tokens included: ``[N, D]`` float32."""
        return self._encode([(0, lambda: texts)], len(texts), progress)

    def represent_queries(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> Vectors:
        """What the model compares of queries: vectors ``[N, D]``, or those of their tokens.

        Args:
            texts: the queries.
            progress: called with the number of texts done.
            prompt: put before each text; None for the model's query prompt.
        """
        prompt = self.settings.query_prompt if prompt is None else prompt
        if self.kind == DENSE:
            return self.encode(texts, prompt, progress)
        tokenize = partial(self.tokenize_queries, prompt=prompt)
        return self._represent(self._parts(texts, tokenize), len(texts), progress)

    def represent_passages(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> Vectors:
        """What the model compares of passages; see :meth:`represent_queries`."""
        prompt = self.settings.passage_prompt if prompt is None else prompt
        if self.kind == DENSE:
            return self.encode(texts, prompt, progress)
        tokenize = partial(self.tokenize_passages, prompt=prompt)
        found = self._represent(self._parts(texts, tokenize), len(texts), progress)
        return found.pooled(self.pool_tokens) if isinstance(found, TokenVectors) and self.pool_tokens > 1 else found

    def _parts(self, texts: Sequence[str], tokenize: Callable[[Sequence[str]], list[Tokens]]) -> list[Part]:
        """The texts in parts, each of which is sorted by length."""
        at_once = facts(self.device).encode_texts
        return [(start, partial(tokenize, texts[start : start + at_once])) for start in range(0, len(texts), at_once)]

    def _encode(self, parts: Sequence[Part], texts: int, progress: Callable[[int], None] | None) -> np.ndarray:
        vectors = np.empty((texts, self.dim), dtype=np.float32)
        mine = ((places, made.cpu().numpy()) for places, made in self._in_chunks(parts, self.embed))
        for places, found in gathered(mine, texts, progress):
            vectors[places] = found
        return vectors

    def _represent(self, parts: Sequence[Part], texts: int, progress: Callable[[int], None] | None) -> Vectors:
        none = self.no_texts
        mine = ((places, self._rows(made)) for places, made in self._in_chunks(parts, self))
        found: list[tuple[np.ndarray, Vectors]] = [(np.empty(0, np.int64), none), *gathered(mine, texts, progress)]
        return in_order(found, row_size(none))

    @staticmethod
    def _rows(texts: Representation) -> Ragged:
        """What a head made, outside of PyTorch."""
        if isinstance(texts, Combined):
            return CombinedVectors.of(texts)
        if isinstance(texts, Sparse):
            return SparseVectors.of(texts)
        assert isinstance(texts, MultiVector)
        return TokenVectors.of(texts)

    def _in_chunks(
        self, parts: Sequence[Part], encode: Callable[[PackedBatch], Any]
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """What ``encode`` makes of each chunk of texts that this rank does, and the places of these."""
        with self.kept_ready():
            whole, together = map(self._chunks, parted(parts))
            yield from one_behind((places, encode(chunk)) for places, chunk in chain(whole, my_share(together)))

    def _chunks(self, parts: Sequence[Part]) -> Iterator[tuple[np.ndarray, PackedBatch]]:
        """The texts in packed chunks, and their places; a part is tokenised while the one before it is encoded."""
        makers = [tokenize for _, tokenize in parts]
        made = made_ahead(makers, self.device) if len(makers) > 1 else (make() for make in makers)
        for (start, _), part in zip(parts, made, strict=True):
            for chunk in chunks(part, facts(self.device).encode_tokens):
                yield start + chunk.index.numpy(), chunk.batch

    def encode_queries(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of queries, under the model's query prompt: ``[N, D]`` float32."""
        return self.encode(texts, self.settings.query_prompt, progress)

    def encode_passages(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of passages, under the model's passage prompt: ``[N, D]`` float32."""
        return self.encode(texts, self.settings.passage_prompt, progress)

    def cut(self, vectors: AnyVectors, dim: int) -> AnyVectors:
        """The first dimensions of this encoder's vectors, as one loaded with ``dim`` makes them."""
        if dim == self.dim:
            return vectors
        if isinstance(vectors, Ragged):
            return vectors.cut(dim)
        cut: np.ndarray = (
            Dense(torch.from_numpy(vectors)).cut(dim, normalize=bool(self.settings.normalize)).vectors.numpy()
        )
        return cut

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> list[str]:
        """Write a folder that transformers and sentence-transformers load; each file appears whole or not at all.

        Args:
            folder: of the model.
            weights: the state of the backbone, gathered, where it is sharded.

        Returns:
            The names of the files below the folder.

        Raises:
            ValueError: the head has weights of its own, and no file of such a folder would hold them.
        """
        layers, whole = self.head.layer_states(), self.head.whole(self.backbone)
        if self.head.state_dict() and not layers and whole is self.backbone:
            raise ValueError("the head has weights of its own: save encoder.head.state_dict() beside the backbone")
        return save_model(folder, whole, self._tokenizer, self.settings, layers, weights)

    @contextlib.contextmanager
    def kept_ready(self) -> Iterator[None]:
        """Inside of this block, and in this thread, weights are laid out and cast once, and not for each chunk.

        Weights must not change meanwhile. Blocks may stand in each other: whoever encodes again and again puts one
        around all of it, and what is encoded there by :meth:`embed` lays out the weights for the rest.
        """
        training = self.backbone.training
        self.eval()
        # Weights that are gathered in inference mode could not be trained afterwards.
        without_graph = torch.no_grad() if is_sharded(self.backbone) else torch.inference_mode()
        try:
            with without_graph, prepared_weights(), autocast(self.precision, self.device):
                yield
        finally:
            self.train(training)


def load_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that a command's configuration describes; raises what :meth:`Encoder.load` does."""
    return load_with(config, config.model)


def load_with(config: EncodingOptions, model: str, flag: str = "--model") -> Encoder:
    """A model, used as a command's options say; arguments and errors as of :meth:`Encoder.load`."""
    return Encoder.load(
        model,
        pooling=config.pooling,
        normalize=config.normalize,
        precision=config.precision,
        device=config.device,
        max_length=config.max_length,
        dim=config.dim,
        pool_tokens=config.pool_tokens,
        head=config.head,
        trust_remote_code=config.trust_remote_code,
        flag=flag,
    )


def _asked_of(
    settings: ModelSettings,
    path: str | Path,
    pooling: str,
    normalize: bool | None,
    max_length: int | None,
    head: str | None,
) -> ModelSettings:
    """A model's settings with those in their place that :meth:`Encoder.load` was asked for."""
    if head is not None and head not in settings.parts:
        raise UserError(f"--head {head}: {path} has no such head; it has {settings.heads}")
    _refuse_other_pooling(pooling, settings)
    asked = replace(
        settings,
        pooling=settings.pooling if pooling == AUTO else pooling,
        normalize=settings.normalize if normalize is None else normalize,
        max_length=max_length or settings.max_length,
    )
    return asked if head is None else asked.of_part(head)


def _refuse_other_pooling(pooling: str, settings: ModelSettings) -> None:
    if DENSE not in settings.parts and pooling != AUTO:
        raise UserError(f"--pooling {pooling}: the model makes something of each token, and pools nothing")
    if settings.static and pooling not in (AUTO, MEAN):
        raise UserError(f"--pooling {pooling}: the vectors of a static model are means of its tokens' vectors")


def _checked_pool_tokens(pool_tokens: int, settings: ModelSettings, path: str | Path) -> int:
    if pool_tokens > 1 and not settings.multi:
        raise UserError(f"--pool-tokens {pool_tokens}: {path} has no vector for each token")
    return pool_tokens


def resolve(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel) -> ModelSettings:
    """The settings with a value for what they leave open: pooling, normalisation, and a length that the model takes."""
    known = [n for n in (settings.max_length or tokenizer.model_max_length, longest_text(backbone.config)) if n]
    return replace(
        settings,
        pooling=settings.pooling or (LAST if is_decoder(backbone) else CLS),
        normalize=settings.normalize is not False,
        max_length=min(min(known), ANY_LENGTH),
    )
