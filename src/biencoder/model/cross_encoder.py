"""Cross-encoders: transformers that read query and passage together and give one logit (Nogueira & Cho 2019)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from biencoder.config.choices import AUTO, FP32
from biencoder.device.choice import autocast, choose_device, choose_precision, facts, placed
from biencoder.errors import UserError
from biencoder.model.architectures.table import fitting_precision, longest_text
from biencoder.model.files.data_only import data_only
from biencoder.model.files.pretrained import load_weights, loading, locate, read_tokenizer, weights_fingerprint
from biencoder.model.files.settings import adapter_base
from biencoder.model.parallel.sharing import gathered, my_share
from biencoder.model.tokens import LETTERS_A_TOKEN, TEXTS_AT_ONCE

PAIRS_AT_ONCE = 4096  # tokenised at a time, among which lengths are sorted
FLAG = "--reranker"

Pair = tuple[str, str]


@dataclass
class CrossEncoder:
    """A sequence classifier with one label.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
        max_length: tokens that a pair is cut to, special tokens included; the longer of the two texts first.
        precision: ``fp32`` or ``bf16`` (autocast); logits are float32 in both.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    precision: str

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        precision: str = FP32,
        device: str = AUTO,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> "CrossEncoder":
        """Load a folder, or a model of the hub by name; safetensors only.

        Args:
            path: folder or hub name.
            precision: ``fp32``, ``bf16``, or ``auto`` for bf16 where the hardware has it.
            device: ``auto``, ``cpu``, ``cuda``.
            max_length: tokens of a pair; None for what tokenizer and model say.
            trust_remote_code: run code that comes with the model, and let its configuration choose attention kernels.

        Raises:
            UserError: no such model, a damaged one, none that classifies, or one with another number of labels than 1.
        """
        folder = locate(path, FLAG)
        target = choose_device(device)
        if adapter_base(folder) is not None:
            raise UserError(f"{FLAG} {path}: is an adapter, which is not handled for cross-encoders; merge it first")
        with loading(path, FLAG), data_only(folder, trust_remote_code) as seen:
            config = AutoConfig.from_pretrained(seen, trust_remote_code=trust_remote_code)
            _check_labels(config, path)
            tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
            model = load_weights(AutoModelForSequenceClassification, seen, config, trust_remote_code=trust_remote_code)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # by it a decoder finds the last token of each pair
            model.config.pad_token_id = tokenizer.pad_token_id
        known = [n for n in (max_length or tokenizer.model_max_length, longest_text(config)) if n]
        chosen = fitting_precision(choose_precision(precision, target), config, path)
        return cls(placed(model, target, f"{FLAG} {path}").eval(), tokenizer, min(min(known), 2**31 - 1), chosen)

    @property
    def fingerprint(self) -> str:
        """A digest of weights and settings: equal fingerprints give equal scores."""
        settings = (self.max_length, self.precision, weights_fingerprint(self.model.state_dict()))
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def score(self, pairs: Sequence[Pair], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """The logit of each query and passage: no sigmoid. Ranks that share their work do it together.

        Args:
            pairs: queries and passages.
            progress: called with the number of pairs done.

        Returns:
            float32 ``[len(pairs)]``, in the order of ``pairs``.

        Raises:
            UserError: a logit that is not finite.
        """
        scores = np.empty(len(pairs), np.float32)
        for places, logits in gathered(self._in_batches(pairs), len(pairs), progress):
            scores[places] = logits
        if not np.isfinite(scores).all():
            raise UserError(f"{FLAG}: gave scores that are not finite; the model is damaged or has diverged")
        return scores

    def _in_batches(self, pairs: Sequence[Pair]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The logits of each batch that this rank does, and the places of its pairs."""
        with torch.inference_mode(), autocast(self.precision, self.model.device):
            for start in range(0, len(pairs), PAIRS_AT_ONCE):
                features = self._tokenize(pairs[start : start + PAIRS_AT_ONCE])
                lengths = [len(ids) for ids in features["input_ids"]]
                for batch in my_share(_batches(lengths, facts(self.model.device).encode_tokens)):
                    logits = self.model(**self._pad(features, batch)).logits
                    yield start + batch, logits[:, 0].float().cpu().numpy()

    def _tokenize(self, pairs: Sequence[Pair]) -> dict[str, list[list[int]]]:
        """Token ids, and segments where the model has them, of each pair."""
        features: dict[str, list[list[int]]] = {"input_ids": []}
        for start in range(0, len(pairs), TEXTS_AT_ONCE):
            queries, passages = zip(*pairs[start : start + TEXTS_AT_ONCE], strict=True)
            encoded = self.tokenizer(
                [text[: LETTERS_A_TOKEN * self.max_length] for text in queries],
                [text[: LETTERS_A_TOKEN * self.max_length] for text in passages],
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
            )
            for name in ("input_ids", "token_type_ids"):
                if name in encoded:
                    features.setdefault(name, []).extend(encoded[name])
        return features

    def _pad(self, features: dict[str, list[list[int]]], batch: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """A batch, filled up on the right."""
        fill = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": 0}
        rows = {name: [features[name][i] for i in batch] for name in features}
        rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
        longest = max(map(len, rows["input_ids"]))
        return {
            name: torch.tensor([row + [fill.get(name, 0)] * (longest - len(row)) for row in values]).to(
                self.model.device
            )
            for name, values in rows.items()
        }


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[NDArray[np.int64]]:
    """The places of the pairs of each batch of up to so many tokens, padded: neighbours in length, longest first."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    first = 0
    while first < len(order):
        count = max(1, tokens // lengths[order[first]])
        yield order[first : first + count]
        first += count


def _check_labels(config: Any, path: str | Path) -> None:
    kinds = config.architectures or []
    if not any("SequenceClassification" in kind for kind in kinds):
        raise UserError(
            f"{FLAG} {path}: is no cross-encoder (its config.json says {', '.join(kinds) or 'no architecture'}, and a "
            "...ForSequenceClassification is wanted)"
        )
    if config.num_labels != 1:
        raise UserError(
            f"{FLAG} {path}: has {config.num_labels} labels ({', '.join(map(str, config.id2label.values()))}); a "
            "cross-encoder with one label is wanted, whose logit says how well the passage answers the query"
        )
