"""What is exported: from the ids of padded texts to token vectors and to the vector of each text.

Shapes: N texts, L tokens of the longest, H hidden size, D dimensions of a vector.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length
from transformers import AutoModel

from biencoder.config.choices import CLS, LAST
from biencoder.model.encoder import Encoder
from biencoder.model.files.pretrained import quiet
from biencoder.model.heads.dense import DenseHead

TOKENS, TEXTS = "last_hidden_state", "sentence_embedding"  # outputs, by the names that other libraries know


class PaddedModel(nn.Module):
    """A model over padded texts: the transformer as transformers runs it, and our head.

    Args:
        folder: of the model.
        head: pools, projects and normalises.
    """

    def __init__(self, folder: Path, head: DenseHead) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        self.pooling, self.normalize, self.layers = head.pooling, head.normalize, head.layers

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``[N, L]`` each -> token vectors ``[N, L, H]`` and the vectors of the texts ``[N, D]``."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden_NLH = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        vectors_ND = self.pooled(hidden_NLH, attention_mask)
        for layer in self.layers:
            vectors_ND = layer(vectors_ND)
        return hidden_NLH, unit_length(vectors_ND, dim=-1) if self.normalize else vectors_ND

    def pooled(self, hidden_NLH: Tensor, mask_NL: Tensor) -> Tensor:
        """One vector a text, ``[N, H]``, whichever side is padded."""
        if self.pooling in (CLS, LAST):
            place_L = torch.arange(1, mask_NL.shape[1] + 1, device=mask_NL.device)
            nearness_NL = mask_NL * (place_L if self.pooling == LAST else place_L.flip(0))
            at_N11 = nearness_NL.argmax(dim=1)[:, None, None].expand(-1, 1, hidden_NLH.shape[2])
            return hidden_NLH.gather(1, at_N11).squeeze(1)
        mask_NL1 = mask_NL.unsqueeze(-1).to(hidden_NLH.dtype)
        return (hidden_NLH * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1)

    def inputs_from(self, encoder: Encoder) -> list[str]:
        """What the model takes of what its tokenizer gives."""
        takes_types = "token_type_ids" in encoder.tokenizer.model_input_names
        has_types = takes_types and getattr(self.backbone.config, "type_vocab_size", 0) > 0
        return ["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])]


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Hide progress, warnings and logs of the libraries; errors are raised."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), quiet(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
