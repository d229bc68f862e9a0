"""A small deterministic encoder for tests: hashed bags of words, no torch."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from biencoder.model.representations.ragged import AnyVectors, Vectors


@dataclass
class HashingEncoder:
    """Each word adds 1 or -1 to a dimension that its checksum picks; vectors have length 1 (0 for an empty text).

    Without ``normalize`` they hold small whole numbers, whose products are exact however they are added up.
    """

    dim: int = 64
    query_prompt: str = ""
    passage_prompt: str = ""
    normalize: bool = True
    texts_seen: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def fingerprint(self) -> str:
        return f"hashing {self.dim} {self.query_prompt!r} {self.passage_prompt!r}"

    def encode(
        self, texts: Sequence[str], prompt: str = "", progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", (prompt + text).lower()):
                code = zlib.crc32(word.encode())
                vectors[row, code % self.dim] += 1.0 if code & 0x10000 else -1.0
            if progress is not None:
                progress(row + 1)
        self.texts_seen += len(texts)
        if not self.normalize:
            return vectors
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return vectors

    def encode_queries(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        return self.encode(texts, self.query_prompt, progress)

    @property
    def kind(self) -> str:
        return "dense"

    @property
    def no_texts(self) -> np.ndarray:
        return np.empty((0, self.dim), np.float32)

    @property
    def words(self) -> Sequence[str]:
        raise NotImplementedError

    @property
    def text_size(self) -> int:
        return self.dim

    def represent_queries(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> Vectors:
        return self.encode(texts, self.query_prompt if prompt is None else prompt, progress)

    def represent_passages(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None, prompt: str | None = None
    ) -> Vectors:
        return self.encode(texts, self.passage_prompt if prompt is None else prompt, progress)

    def cut(self, vectors: AnyVectors, dim: int) -> AnyVectors:
        assert isinstance(vectors, np.ndarray)
        short = vectors[:, :dim]
        return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-9) if self.normalize else short

    def encode_passages(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        return self.encode(texts, self.passage_prompt, progress)
