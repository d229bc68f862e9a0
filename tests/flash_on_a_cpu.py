"""What stands in for PyTorch's flash attention on a GPU: it computes on a CPU what the operators say."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from biencoder.model.attention import flash


def on_the_card(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``_flash_attention_forward`` text by text, positions aligned at their ends; dropout by PyTorch's generator."""
    drawn = torch.get_rng_state()
    assert query.dtype == key.dtype == value.dtype
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert (len(query), len(key)) == (int(cum_seq_q[-1]), int(cum_seq_k[-1]))  # other rows would not be written
    assert int(cum_seq_q.diff().max()) == max_q
    assert int(cum_seq_k.diff().max()) == max_k
    assert not return_debug_mask
    if is_causal:
        assert window_size_right == 0
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    attended = []
    for (q0, q1), (k0, k1) in zip(cum_seq_q.unfold(0, 2, 1).tolist(), cum_seq_k.unfold(0, 2, 1).tolist(), strict=True):
        scores = torch.einsum("qhe,khe->hqk", query[q0:q1], key[k0:k1]) * scale
        ahead = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - (k1 - k0) + (q1 - q0)
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        if window_size_left >= 0:
            hidden |= ahead < -window_size_left
        if window_size_right >= 0:
            hidden |= ahead > window_size_right
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        attended.append(torch.einsum("hqk,khe->qhe", torch.nn.functional.dropout(weights, dropout_p), value[k0:k1]))
    return torch.cat(attended), torch.empty(0), drawn


def back_on_the_card(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    **names: Any,
) -> flash.Heads:
    """``_flash_attention_backward``: the gradient of :func:`on_the_card` with the masks that it drew."""
    assert grad_out.shape == out.shape
    assert not logsumexp.numel()
    assert unused.ndim == 0
    rows = [x.detach().requires_grad_() for x in (query, key, value)]
    with torch.random.fork_rng(), torch.enable_grad():
        torch.set_rng_state(rng_state)
        attended, *_ = on_the_card(
            *(rows[0], rows[1], rows[2], cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, False), **names
        )
        query, key, value = torch.autograd.grad(attended, rows, grad_out)
    return query, key, value


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention runs as on a GPU, by what stands in for the calls of the card."""
    monkeypatch.setattr(flash, "operator", on_the_card)
    monkeypatch.setattr(flash, "backward_operator", back_on_the_card)
    monkeypatch.setattr(flash, "is_made_for", lambda *_: True)
    monkeypatch.setattr(flash, "runs", lambda *_: True)
