"""``BiEncoderModel``: the training model from which BAAI's BGE embeddings came, with its contract kept to the letter.

Shapes: B queries, G passages in a group, L tokens, D dimensions. Under ``negatives_cross_device`` B counts all ranks'.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from biencoder.config.choices import HIGHEST_TEMPERATURE
from biencoder.distributed import gather_with_gradient, is_distributed
from biencoder.errors import UserError
from biencoder.model.architectures.table import enable_packing, longest_text
from biencoder.model.encoder import Encoder
from biencoder.model.files.pretrained import (
    UNREADABLE,
    checkpoint_activations,
    load_backbone,
    locate,
    read_tokenizer,
)
from biencoder.model.files.saving import save_model
from biencoder.model.files.settings import ModelSettings
from biencoder.model.heads.dense import DenseHead
from biencoder.model.packing import PackedBatch
from biencoder.model.pooling import POOLINGS
from biencoder.model.representations.dense import Dense
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import Labels

logger = logging.getLogger(__name__)

OWN_PREFIX, ORIGINAL_PREFIX = "encoder.backbone.", "model."  # of the backbone's weights


@dataclass
class EncoderOutput(ModelOutput):  # type: ignore[misc]  # transformers is not followed by the type checker
    """What a forward pass gives.

    Attributes:
        loss: scalar; None in eval mode and where a side is missing.
        scores: training ``[B, B·G]`` (in-batch) or ``[B, G]`` (group) over temperature; eval: the plain similarity.
        q_reps: ``[B, D]``, or None.
        p_reps: ``[B·G, D]``, or None.
    """

    loss: Tensor | None = None
    scores: Tensor | None = None
    q_reps: Tensor | None = None
    p_reps: Tensor | None = None


class BiEncoderModel(nn.Module):
    """Two towers that share one transformer, trained by contrast (Karpukhin et al. 2020; Xiao et al. 2023).

    Args:
        model_name: folder or hub name of a transformers model.
        normlized: scale vectors to length 1 (the original's own spelling).
        sentence_pooling_method: ``cls`` (the first real token), ``mean`` (over real tokens) or ``last``.
        negatives_cross_device: share queries and passages over all ranks of the process group.
        temperature: similarities are divided by it in training. Ignored (1.0) without normalisation.
        use_inbatch_neg: passages of other queries are negatives too; otherwise only the query's own group counts.

    Attributes:
        encoder: backbone and head. In ``state_dict`` the backbone's names begin with ``model.``, as the original's do.
        temperature: the one in use.

    Raises:
        ValueError: there is no model name, the pooling is unknown, the temperature is not positive, or it is above
            0.5 with normalised vectors.
    """

    def __init__(
        self,
        model_name: str = None,  # type: ignore[assignment]  # noqa: RUF013 - the contract's own signature
        normlized: bool = False,
        sentence_pooling_method: str = "cls",
        negatives_cross_device: bool = False,
        temperature: float = 1.0,
        use_inbatch_neg: bool = True,
    ) -> None:
        super().__init__()
        if not model_name:
            raise ValueError("model_name is missing: give a folder or a hub name, such as 'BAAI/bge-small-en-v1.5'")
        if sentence_pooling_method not in POOLINGS:
            raise ValueError(f"sentence_pooling_method {sentence_pooling_method!r}: known are {', '.join(POOLINGS)}")
        self.model_name = model_name
        self.encoder = _encoder(model_name, sentence_pooling_method, normlized)
        self.temperature = _checked_temperature(temperature, normlized)
        self.use_inbatch_neg = use_inbatch_neg
        self.negatives_cross_device = negatives_cross_device and is_distributed()
        if negatives_cross_device and not is_distributed():
            logger.warning("negatives_cross_device: no process group is initialised, so there is only one device")
        self.register_state_dict_post_hook(_with_original_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_original_names)  # type: ignore[no-untyped-call]

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self.encoder.backbone

    @property
    def config(self) -> PreTrainedConfig:
        """The transformers model's configuration."""
        return self.model.config

    def forward(
        self,
        query: Mapping[str, Tensor] | None = None,
        passage: Mapping[str, Tensor] | None = None,
        teacher_score: Tensor | None = None,
    ) -> EncoderOutput:
        """Encode both sides and, in training mode, score them.

        Args:
            query: ``{"input_ids": [B, L], "attention_mask": [B, L]}``.
            passage: the same with B·G rows; the group of query i at rows i·G … i·G+G-1, its positive first.
            teacher_score: ``[B, G]`` or ``[B·G]``; adds soft-label distillation to the contrastive loss.

        Raises:
            ValueError: the number of passages is not a multiple of the number of queries, or there are not as many
                teacher scores as passages.
        """
        q_reps, p_reps = self.encode(query), self.encode(passage)
        if q_reps is None or p_reps is None:
            return EncoderOutput(q_reps=q_reps, p_reps=p_reps)
        if not self.training:
            with torch.autocast(q_reps.device.type, enabled=False):
                return EncoderOutput(scores=Dense(q_reps).scores(Dense(p_reps)), q_reps=q_reps, p_reps=p_reps)
        if not len(q_reps) or len(p_reps) % len(q_reps):
            raise ValueError(f"{len(p_reps)} passages do not make equal groups for {len(q_reps)} queries")
        group_size = len(p_reps) // len(q_reps)
        teacher = _grouped(teacher_score, len(q_reps), group_size)
        if self.negatives_cross_device and self.use_inbatch_neg:
            q_reps, p_reps = gather_with_gradient(q_reps), gather_with_gradient(p_reps)
            teacher = None if teacher is None else gather_with_gradient(teacher.contiguous())
        labels = Labels.of_groups(len(q_reps), group_size, q_reps.device)
        objective = ContrastiveObjective(self.temperature, self.use_inbatch_neg)
        losses = objective(Dense(q_reps), Dense(p_reps), Labels(labels.groups, teacher=teacher))
        return EncoderOutput(loss=losses.total.mean(), scores=losses.scores, q_reps=q_reps, p_reps=p_reps)

    def encode(self, features: Mapping[str, Tensor] | None) -> Tensor | None:
        """Pooled vectors of padded features, padding on either side: ``[N, L]`` -> ``[N, D]`` float32, contiguous.

        Returns:
            None for None.

        Raises:
            ValueError: a row without a single real token.
        """
        if features is None:
            return None
        batch, original = _pack_padded(features)
        return self.encoder.embed(batch)[original]

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations in the backward pass; keywords as transformers takes them.

        Non-reentrant unless said otherwise: the reentrant kind fails under data-parallel training ("ready twice").
        """
        checkpoint_activations(self.model, kwargs.pop("gradient_checkpointing_kwargs", None), **kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """:meth:`gradient_checkpointing_enable` by the name that transformers gives it since 5.23."""
        checkpoint_activations(self.model, kwargs.pop("activation_checkpointing_kwargs", None), **kwargs)

    def save(self, output_dir: str) -> None:
        """Write a folder that transformers, sentence-transformers and biencoder load as the same model."""
        tokenizer = self._tokenizer()
        known = [n for n in (longest_text(self.config), tokenizer and tokenizer.model_max_length) if n]
        settings = replace(self.encoder.settings, max_length=min(known) if known else None)
        save_model(Path(output_dir), self.model, tokenizer, settings)

    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        try:
            return read_tokenizer(locate(self.model_name), trust_remote_code=False)
        except (*UNREADABLE, UserError):
            logger.warning("%s has no tokenizer that loads: the model is saved without one", self.model_name)
            return None


def _encoder(model_name: str, pooling: str, normalize: bool) -> Encoder:
    """The encoder of a model; under autocast where the caller says so, and without a tokenizer."""
    backbone = load_backbone(locate(model_name))
    settings = ModelSettings(pooling=pooling, normalize=normalize, prompts={"query": "", "document": ""})
    head = DenseHead(int(backbone.config.hidden_size), pooling=pooling, normalize=normalize)
    return Encoder(backbone, head, None, settings, precision=None, first_position=enable_packing(backbone))


def _with_original_names(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """``encoder.backbone.…`` -> ``model.…``, in place: code for the original looks for its names."""
    for name in [name for name in state if name.startswith(prefix + OWN_PREFIX)]:
        state[prefix + ORIGINAL_PREFIX + name[len(prefix + OWN_PREFIX) :]] = state.pop(name)


def _from_original_names(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """``model.…`` -> ``encoder.backbone.…``, in place."""
    for name in [name for name in state if name.startswith(prefix + ORIGINAL_PREFIX)]:
        state[prefix + OWN_PREFIX + name[len(prefix + ORIGINAL_PREFIX) :]] = state.pop(name)


def _checked_temperature(temperature: float, normalize: bool) -> float:
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: must be positive")
    if not normalize:
        logger.info("vectors are not normalised: the temperature is 1.0")
        return 1.0
    if temperature > HIGHEST_TEMPERATURE:
        raise ValueError(
            f"temperature {temperature} is above {HIGHEST_TEMPERATURE} with normalised vectors. Cosines lie in "
            "[-1, 1], so the logits would be nearly equal and teach nothing; use 0.01 to 0.1"
        )
    return temperature


def _grouped(teacher_score: Tensor | None, queries: int, group_size: int) -> Tensor | None:
    if teacher_score is None:
        return None
    if teacher_score.numel() != queries * group_size:
        raise ValueError(f"teacher_score has {teacher_score.numel()} values for {queries} x {group_size} passages")
    return teacher_score.reshape(queries, group_size).float()


def _pack_padded(features: Mapping[str, Tensor]) -> tuple[PackedBatch, Tensor]:
    """Drop the padding and put the longest texts first; the tensor puts vectors back into the order of the rows."""
    mask_NL = features["attention_mask"].bool()
    lengths = mask_NL.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    lengths_sorted: list[int] = lengths[order].tolist()
    if lengths_sorted and lengths_sorted[-1] == 0:
        raise ValueError(f"row {int(order[-1])} of attention_mask has no real token")
    real = mask_NL[order]
    types = features.get("token_type_ids")
    batch = PackedBatch(
        input_ids=features["input_ids"][order][real],
        lengths=tuple(lengths_sorted),
        token_type_ids=None if types is None else types[order][real],
    )
    return batch, order.argsort()
