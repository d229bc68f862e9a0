"""The encoder: backbone, pooling, normalisation. It loads, saves, and turns texts into vectors; it knows no loss.

Shapes: T tokens in a packed row, N texts, D dimensions of a vector.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit_length
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from biencoder.data.batching import PackedBatch, chunks, tokenize
from biencoder.errors import UserError
from biencoder.files import sync_folder
from biencoder.model.architectures import enable_packing, longest_text
from biencoder.model.attention import Packing, packed
from biencoder.model.folder import ModelSettings, read_settings, write_settings
from biencoder.model.pooling import POOLINGS
from biencoder.model.precision import autocast, choose_device, choose_precision

# The names under which architectures keep the dropouts that act in a backbone.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout",
)
READABLE = 0o644
ENCODE_TOKENS = 8192  # a forward pass without gradient; more does not run faster, and takes more memory
ENCODE_TEXTS = 4096  # texts tokenised at a time, among which lengths are sorted


def embed(
    backbone: nn.Module, batch: PackedBatch, *, pooling: str, normalize: bool, first_position: int | None
) -> Tensor:
    """Vectors of a packed batch; gradients flow.

    Args:
        backbone: a transformers model, prepared by :func:`~biencoder.model.architectures.enable_packing`.
        batch: N texts in one row of T tokens, on the backbone's device.
        pooling: a name in :data:`~biencoder.model.pooling.POOLINGS`.
        normalize: scale each vector to length 1.
        first_position: what ``enable_packing`` returned; None runs the texts as a padded matrix instead.

    Returns:
        ``[N, D]`` float32, contiguous, in the order of the batch.
    """
    packing = Packing(batch.lengths, batch.input_ids.device)
    if first_position is None:
        hidden_TD = _padded(backbone, batch)
    else:
        hidden_TD = _packed(backbone, batch, packing, first_position)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        vectors_ND = POOLINGS[pooling](hidden_TD, packing.starts).float()
        if normalize:
            vectors_ND = to_unit_length(vectors_ND, dim=-1)
    return vectors_ND.contiguous()


def _packed(backbone: nn.Module, batch: PackedBatch, packing: Packing, first_position: int) -> Tensor:
    with packed(packing):
        output = backbone(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=_positions(batch.input_ids, packing, first_position).unsqueeze(0),
            **_optional_inputs(backbone, None if batch.token_type_ids is None else batch.token_type_ids.unsqueeze(0)),
        )
    return output.last_hidden_state.squeeze(0)  # type: ignore[no-any-return]


def _positions(ids_T: Tensor, packing: Packing, first_position: int) -> Tensor:
    """Each token's place in its text: ``[T]``, counted from ``first_position``.

    Models that count from ``padding_idx + 1`` pass over tokens that look like padding, and give them ``padding_idx``; a
    text may well say ``<pad>``.
    """
    counted_T = torch.ones_like(ids_T) if first_position == 0 else (ids_T != first_position - 1).long()
    running_T = counted_T.cumsum(0)
    starts = packing.starts.long()
    before_N = (running_T - counted_T)[starts[:-1]]
    place_T = running_T - before_N.repeat_interleave(starts.diff())
    return place_T * counted_T + first_position - 1


def _padded(backbone: nn.Module, batch: PackedBatch) -> Tensor:
    lengths = torch.tensor(batch.lengths, device=batch.input_ids.device)
    real_NL = torch.arange(max(batch.lengths), device=lengths.device) < lengths[:, None]
    padding: Any = backbone.config.pad_token_id  # type: ignore[union-attr]
    ids_NL = batch.input_ids.new_full(real_NL.shape, padding or 0).masked_scatter(real_NL, batch.input_ids)
    types_NL = None
    if batch.token_type_ids is not None:
        types_NL = torch.zeros_like(ids_NL).masked_scatter(real_NL, batch.token_type_ids)
    output = backbone(input_ids=ids_NL, attention_mask=real_NL.long(), **_optional_inputs(backbone, types_NL))
    return output.last_hidden_state[real_NL]  # type: ignore[no-any-return]


def _optional_inputs(backbone: Any, token_type_ids: Tensor | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
    if getattr(backbone.config, "use_cache", False):
        inputs["use_cache"] = False
    return inputs


@dataclass
class Encoder:
    """A model that turns queries and passages into vectors.

    Attributes:
        backbone: the transformers model.
        tokenizer: its tokenizer.
        settings: pooling, normalisation, prompts and length; nothing in it is None but ``similarity``.
        precision: ``fp32`` or ``bf16`` (autocast); vectors are float32 in both.
        first_position: see :func:`embed`.
    """

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: ModelSettings
    precision: str
    first_position: int | None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        pooling: str = "auto",
        normalize: bool | None = None,
        precision: str = "fp32",
        device: str = "auto",
        max_length: int | None = None,
        dropout: float | None = None,
    ) -> "Encoder":
        """Load a model folder, or a model of the hub by name.

        Args:
            path: folder with ``config.json`` and safetensors weights, or a hub name.
            pooling: ``auto`` (what the model's own files say; else last token for decoders, cls for the others).
            normalize: None for what the model's own files say, else yes.
            precision: ``fp32``, ``bf16``, or ``auto`` for bf16 where the hardware has it.
            device: ``auto``, ``cpu``, ``cuda``.
            max_length: tokens a text is cut to; None for what the model's own files say.
            dropout: probability of every dropout in training; None for the model's own.

        Raises:
            UserError: no such model, a damaged one, or one with parts that biencoder does not run.
        """
        folder = locate(path)
        settings = read_settings(folder)
        target = choose_device(device)
        backbone, tokenizer = _load_parts(folder, str(path), dropout)
        first_position = enable_packing(backbone)
        longest = longest_text(backbone.config)
        known = [n for n in (max_length or settings.max_length or tokenizer.model_max_length, longest) if n]
        return cls(
            backbone=backbone.to(target).eval(),
            tokenizer=tokenizer,
            settings=replace(
                settings,
                pooling=_choose_pooling(pooling, settings, backbone),
                normalize=(settings.normalize is not False) if normalize is None else normalize,
                max_length=min(min(known), 2**31 - 1),
            ),
            precision=choose_precision(precision, target),
            first_position=first_position,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.backbone.device
        return device

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self.backbone.config.hidden_size)

    @property
    def max_length(self) -> int:
        """Tokens a text is cut to, special tokens included."""
        assert self.settings.max_length is not None
        return self.settings.max_length

    @property
    def fingerprint(self) -> str:
        """A digest of weights and settings: equal fingerprints give equal vectors."""
        digest = hashlib.sha256(repr((self.settings, self.precision)).encode())
        for name, weight in self.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def embed(self, batch: PackedBatch) -> Tensor:
        """Vectors of a packed batch on any device: ``[N, D]`` float32. Gradients flow, in this encoder's precision."""
        assert self.settings.pooling is not None
        assert self.settings.normalize is not None
        with autocast(self.precision, self.device):
            return embed(
                self.backbone,
                batch.to(self.device),
                pooling=self.settings.pooling,
                normalize=self.settings.normalize,
                first_position=self.first_position,
            )

    def tokenize(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[list[int]]:
        """Token ids of ``prompt + text``, cut to ``max_length`` tokens or to the model's."""
        prompted = [prompt + text for text in texts]
        if self.settings.lowercase:
            prompted = [text.lower() for text in prompted]
        return tokenize(self.tokenizer, prompted, min(max_length or self.max_length, self.max_length))

    def encode(
        self, texts: Sequence[str], prompt: str = "", progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of texts, with ``prompt`` before each.

        Args:
            texts: any number of them.
            prompt: put before each text.
            progress: called with the number of texts done.

        Returns:
            ``[N, D]`` float32, in the order of ``texts``.
        """
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with self._inference():
            for start in range(0, len(texts), ENCODE_TEXTS):
                part = texts[start : start + ENCODE_TEXTS]
                done = start
                for chunk in chunks(self.tokenize(part, prompt), ENCODE_TOKENS):
                    vectors[start + chunk.index.numpy()] = self.embed(chunk.batch).cpu().numpy()
                    done += len(chunk.index)
                    if progress is not None:
                        progress(done)
        return vectors

    def encode_queries(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of queries, under the model's query prompt: ``[N, D]`` float32."""
        return self.encode(texts, self.settings.query_prompt, progress)

    def encode_passages(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of passages, under the model's passage prompt: ``[N, D]`` float32."""
        return self.encode(texts, self.settings.passage_prompt, progress)

    def save(self, folder: Path) -> None:
        """Write a folder that transformers and sentence-transformers load; each file appears whole or not at all."""
        save_model(folder, self.backbone, self.tokenizer, self.settings)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.backbone.train(training)


def save_model(
    folder: Path, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, settings: ModelSettings
) -> None:
    """Write weights, configuration, tokenizer and sentence-transformers' files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".model.", dir=folder))
    try:
        with _quiet():
            backbone.save_pretrained(staged)
        if tokenizer is not None:
            tokenizer.save_pretrained(staged)
        for file in sorted(staged.iterdir()):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
            file.chmod(READABLE)  # safetensors makes files that only their owner can read
            file.replace(folder / file.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    write_settings(folder, settings, int(backbone.config.hidden_size))


def locate(path: str | Path) -> Path:
    """The folder of a model: the path itself, or the hub's cache for a name like ``BAAI/bge-small-en-v1.5``.

    Raises:
        UserError: neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"--model {path}: no model in this folder (it has no config.json)")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(str(path), ignore_patterns=["*.bin", "*.h5", "*.onnx", "*.msgpack", "openvino/*"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--model {path}: no such folder, and not to be had from the model hub ({reason})") from error


def load_backbone(folder: Path, dropout: float | None = None) -> PreTrainedModel:
    """The transformer alone, in float32, its unused pooler frozen.

    A pooler (BERT's dense layer on the first token) takes no part in any pooling here. It is kept, so that what is
    saved is whole, and frozen, so that data-parallel training does not wait for a gradient that never comes.

    Args:
        folder: of the model.
        dropout: probability of every dropout; None for what its configuration says. The configuration stays as it is.
    """
    config = AutoConfig.from_pretrained(folder)
    own = {name: getattr(config, name) for name in DROPOUTS if hasattr(config, name)} if dropout is not None else {}
    for name in own:
        setattr(config, name, dropout)
    with _quiet():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    backbone, report = loaded
    _refuse_random_weights(report)
    for name, value in own.items():
        setattr(backbone.config, name, value)
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
    return backbone


def _refuse_random_weights(report: dict[str, Any]) -> None:
    """What a file lacks, transformers fills with random numbers and a line in the log; only a pooler may be lacking."""
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler"))
    if missing:
        raise ValueError(f"the file of weights lacks {missing[0]}, one of {len(missing)} that config.json asks for")
    for name, found, wanted in report["mismatched_keys"]:
        raise ValueError(f"{name} is {list(found)} in the file of weights and {list(wanted)} by config.json")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars from transformers for loads and saves of a second, and a table of weights, which we check."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _load_parts(folder: Path, name: str, dropout: float | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where no vocabulary is
            raise ValueError("its tokenizer has no vocabulary")
        return load_backbone(folder, dropout), tokenizer
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model {name}: cannot be loaded ({reason})") from error


def _choose_pooling(asked: str, settings: ModelSettings, backbone: PreTrainedModel) -> str:
    if asked != "auto":
        return asked
    if settings.pooling is not None:
        return settings.pooling
    causal = any(getattr(module, "is_causal", False) for module in backbone.modules())
    return "last" if causal else "cls"
