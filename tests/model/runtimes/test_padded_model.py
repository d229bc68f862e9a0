"""The model that is exported pools as ours does, whichever side is padded."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from biencoder import Encoder
from biencoder.model.heads.dense import DenseHead
from biencoder.model.pooling import POOLINGS
from biencoder.model.runtimes.padded_model import PaddedModel


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 2)])
def test_pooling_leaves_padding_out_on_either_side(pooling: str, before: int, after: int, tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path), pooling=pooling, normalize=False)
    assert isinstance(encoder.head, DenseHead)
    hidden = torch.randn(7, 32)
    expected = POOLINGS[pooling](hidden, torch.tensor([0, 7], dtype=torch.int32))
    padded = torch.nn.functional.pad(hidden, (0, 0, before, after), value=1e3)[None]
    mask = torch.nn.functional.pad(torch.ones(7, dtype=torch.int64), (before, after))[None]
    torch.testing.assert_close(PaddedModel(tmp_path, encoder.head).pooled(padded, mask), expected)
