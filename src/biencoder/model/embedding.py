"""From a packed batch to hidden states: the forward pass, packed where the architecture allows it, else padded.

Shapes: T tokens in a packed row, N texts, L tokens of the longest, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from biencoder.config.choices import CPU
from biencoder.device.choice import facts
from biencoder.model.architectures.bert import skips_unused_tokens
from biencoder.model.attention.interface import packed
from biencoder.model.dropout import RowKeys, dropping
from biencoder.model.masks import TextKeys, key_of
from biencoder.model.packing import PackedBatch, Packing

PADDING = 0.2  # largest share of padding where an architecture needs it


def hidden_states(
    backbone: nn.Module,
    batch: PackedBatch,
    first_position: int | None,
    used_tokens: Callable[[Tensor], Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Hidden states of a packed batch, and where each text begins among them; gradients flow.

    Args:
        backbone: a transformers model, prepared by :func:`~biencoder.model.architectures.table.enable_packing`.
        batch: N texts in one row of T tokens, on the backbone's device.
        first_position: what ``enable_packing`` returned; None runs the texts as a padded matrix instead.
        used_tokens: from the starts of the texts to the one token of each that a head looks at, or to None.

    Returns:
        ``[T, D]`` and ``starts`` ``[N + 1]``. Where the last layer ran for the used tokens alone, each text is one
        token long: ``[N, D]`` and ``0, 1, … N``.
    """
    keys = _mask_keys(backbone, batch)
    packing = batch.packing.keyed(keys)
    if first_position is None:
        return _padded(backbone, batch, keys), packing.starts
    used = used_tokens(packing.starts) if skips_unused_tokens(backbone) else None
    if used is None:
        return _packed(backbone, batch, packing, first_position)[: packing.tokens], packing.starts
    spare = facts(used.device).rows_of_products(len(used)) - len(used)
    hidden_ND = _packed(backbone, batch, packing.using(pad(used, (0, spare))), first_position)[: len(used)]
    return hidden_ND, torch.arange(len(used) + 1, dtype=packing.starts.dtype, device=used.device)


def _packed(backbone: nn.Module, batch: PackedBatch, packing: Packing, first_position: int) -> Tensor:
    spare = facts(packing.device).rows_of_products(packing.tokens) - packing.tokens
    types = None if batch.token_type_ids is None else pad(batch.token_type_ids, (0, spare)).unsqueeze(0)
    with packed(packing), dropping(_keys_of_row(batch, packing, spare)):
        output = backbone(
            input_ids=pad(batch.input_ids, (0, spare)).unsqueeze(0),
            position_ids=pad(_positions(batch.input_ids, packing, first_position), (0, spare)).unsqueeze(0),
            **_optional_inputs(backbone, types),
        )
    return output.last_hidden_state.squeeze(0)  # type: ignore[no-any-return]


def _mask_keys(backbone: nn.Module, batch: PackedBatch) -> TextKeys | None:
    """The batch's own keys, or drawn ones; None where the device's own generator makes the masks of dropout.

    That is outside of training, and on a GPU in half precision, because flash attention there takes no masks.
    """
    kind = batch.input_ids.device.type
    if not backbone.training or (kind != CPU and torch.is_autocast_enabled(kind)):
        return None
    return batch.keys or TextKeys.drawn(len(batch.lengths)).to(batch.input_ids.device)


def _keys_of_row(batch: PackedBatch, packing: Packing, spare: int) -> RowKeys | None:
    keys = packing.keys
    if keys is None:
        return None

    def make() -> Tensor:
        lengths_N = packing.starts.diff().long()
        keys_T = keys.texts_N.repeat_interleave(lengths_N, output_size=packing.tokens)
        return pad(key_of(keys_T, _positions(batch.input_ids, packing, 0)), (0, spare))[None]

    return RowKeys(keys.step, make)


def _positions(ids_T: Tensor, packing: Packing, first_position: int) -> Tensor:
    """Each token's place in its text: ``[T]``, counted from ``first_position``.

    Models that count from ``padding_idx + 1`` pass over tokens that look like padding, and give them ``padding_idx``; a
    text may well say ``<pad>``.
    """
    counted_T = torch.ones_like(ids_T) if first_position == 0 else (ids_T != first_position - 1).long()
    running_T = counted_T.cumsum(0)
    starts = packing.starts.long()
    before_N = (running_T - counted_T)[starts[:-1]]
    place_T = running_T - before_N.repeat_interleave(starts.diff(), output_size=len(ids_T))
    return place_T * counted_T + first_position - 1


def _padded(backbone: nn.Module, batch: PackedBatch, keys: TextKeys | None) -> Tensor:
    """Hidden states ``[T, D]`` by way of matrices of texts of similar length, so that padding stays a small part."""
    hidden, first = [], 0
    for texts in _similar_lengths(batch.lengths):
        part = slice(first, first + sum(batch.lengths[texts]))
        types = None if batch.token_type_ids is None else batch.token_type_ids[part]
        cut = PackedBatch(batch.input_ids[part], batch.lengths[texts], types)
        with dropping(None if keys is None else _keys_of_matrix(cut, keys.only(texts))):
            hidden.append(_padded_part(backbone, cut))
        first = part.stop
    return torch.cat(hidden)


def _keys_of_matrix(batch: PackedBatch, keys: TextKeys) -> RowKeys:
    places_L = torch.arange(max(batch.lengths), device=batch.input_ids.device)
    return RowKeys(keys.step, lambda: key_of(keys.texts_N[:, None], places_L))


def _similar_lengths(lengths: Sequence[int]) -> Iterator[slice]:
    """Cut neighbouring texts into parts of which at most :data:`PADDING` is padding."""
    first, longest, tokens = 0, 0, 0
    for place, length in enumerate(lengths):
        longest, tokens = max(longest, length), tokens + length
        if tokens < (1 - PADDING) * longest * (place + 1 - first):
            yield slice(first, place)
            first, longest, tokens = place, length, length
    yield slice(first, len(lengths))


def _padded_part(backbone: nn.Module, batch: PackedBatch) -> Tensor:
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
