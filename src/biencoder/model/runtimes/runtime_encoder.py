"""An exported file as an encoder, to compare it with the model that it was made from.

Shapes: N texts, L tokens of the longest in a batch, D dimensions of a vector.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from biencoder.config.choices import DENSE
from biencoder.model.encoder import Encoder
from biencoder.model.representations.ragged import AnyVectors, Vectors
from biencoder.model.runtimes.runtime import Session

Advance = Callable[[int], None]  # called with the number of texts done
BATCH = 32  # texts of similar lengths at a time


class RuntimeEncoder:
    """Vectors by another library on a CPU, from the tokens that the original model would get.

    Args:
        session: runs the exported file.
        encoder: the original.
    """

    device = torch.device("cpu")
    kind = DENSE
    words: Sequence[str] = ()

    def __init__(self, session: Session, encoder: Encoder) -> None:
        self._session = session
        self._encoder = encoder
        self.dim = self.text_size = encoder.dim
        self.no_texts = np.empty((0, encoder.dim), np.float32)

    @property
    def fingerprint(self) -> str:
        """That of the original, whose vectors these should be."""
        return self._encoder.fingerprint

    def encode(self, texts: Sequence[str], prompt: str = "", progress: Advance | None = None) -> np.ndarray:
        """Vectors of texts under a prompt: ``[N, D]`` float32."""
        tokens = self._encoder.tokenize(texts, prompt)
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        vectors = np.empty((len(tokens), self.dim), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            vectors[chosen] = self._run([tokens[i] for i in chosen])
            if progress is not None:
                progress(start + len(chosen))
        return vectors

    def encode_queries(self, texts: Sequence[str], progress: Advance | None = None) -> np.ndarray:
        """Vectors of queries, under the model's query prompt."""
        return self.encode(texts, self._encoder.settings.query_prompt, progress)

    def encode_passages(self, texts: Sequence[str], progress: Advance | None = None) -> np.ndarray:
        """Vectors of passages, under the model's passage prompt."""
        return self.encode(texts, self._encoder.settings.passage_prompt, progress)

    def represent_queries(
        self, texts: Sequence[str], progress: Advance | None = None, prompt: str | None = None
    ) -> Vectors:
        """Vectors of queries, under the model's query prompt if ``prompt`` is None: it compares one for each text."""
        return self.encode(texts, self._encoder.settings.query_prompt if prompt is None else prompt, progress)

    def represent_passages(
        self, texts: Sequence[str], progress: Advance | None = None, prompt: str | None = None
    ) -> Vectors:
        """The same of passages."""
        return self.encode(texts, self._encoder.settings.passage_prompt if prompt is None else prompt, progress)

    def cut(self, vectors: AnyVectors, dim: int) -> AnyVectors:
        """The first dimensions, as the original cuts them."""
        return self._encoder.cut(vectors, dim)

    def _run(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        lengths = np.array([len(text) for text in tokens])
        mask_NL = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids_NL = np.full(mask_NL.shape, self._encoder.tokenizer.pad_token_id or 0, np.int64)
        ids_NL[mask_NL == 1] = np.concatenate(tokens)
        return self._session({"input_ids": ids_NL, "attention_mask": mask_NL, "token_type_ids": np.zeros_like(ids_NL)})
