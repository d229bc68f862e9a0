"""The head of a model, from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from biencoder.config.choices import DENSE, SPARSE
from biencoder.errors import UserError
from biencoder.model.files.heads.combined import read_head
from biencoder.model.files.language_model import language_model
from biencoder.model.files.settings import ModelSettings, read_layers, transformer_place
from biencoder.model.heads.combined import CombinedHead
from biencoder.model.heads.dense import DenseHead
from biencoder.model.heads.head import Head
from biencoder.model.heads.multi_vector import MultiVectorHead
from biencoder.model.heads.projected import ProjectedHead
from biencoder.model.heads.projection import projections
from biencoder.model.heads.query_table import QueryTableHead
from biencoder.model.heads.sparse import SparseHead
from biencoder.model.heads.splade import SpladeHead
from biencoder.model.tokens import unspoken


@dataclass(frozen=True)
class StoredHead:
    """What a head is made from.

    Attributes:
        folder: of the model.
        path: of the model as a person named it, for messages.
        settings: with a pooling; of all heads, or of the one that is wanted.
        is_one_of_several: the folder has several heads.
        backbone: of the model.
        tokenizer: of the model.
    """

    folder: Path
    path: str | Path
    settings: ModelSettings
    is_one_of_several: bool
    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def load(self, dim: int | None) -> Head:
        """The head with its weights, whose vectors are cut to ``dim`` dimensions if asked.

        Raises:
            UserError: vectors that cannot be cut so, or damaged weights.
            ValueError: weights that do not fit.
        """
        settings = self.settings
        if settings.combined and dim is not None:
            raise UserError(f"--dim {dim}: {self.path} has several heads ({settings.heads}); name one with --head")
        parts = {kind: self._part(settings.of_part(kind), dim) for kind in settings.parts}
        return CombinedHead(parts, settings.weights) if settings.combined else parts[settings.heads]

    def _part(self, settings: ModelSettings, dim: int | None) -> Head:
        if settings.sparse:
            if dim is not None:
                raise UserError(f"--dim {dim}: {self.path} makes weights of words, which cannot be cut")
            return self._sparse(settings)
        head: ProjectedHead
        layers = projections(settings.layers, self._width, self._weights(settings.heads))
        if settings.multi:
            head = MultiVectorHead(self._width, layers=layers, dim=dim, skips_first=settings.skips_first)
        else:
            pooling, normalize = settings.pooling, bool(settings.normalize)
            assert pooling is not None
            head = DenseHead(self._width, pooling=pooling, normalize=normalize, layers=layers, dim=dim)
        if head.dim > head.full_dim:
            raise UserError(f"--dim {dim}: {self.path} makes {head.full_dim} dimensions")
        return head

    def _sparse(self, settings: ModelSettings) -> Head:
        vocabulary = int(self.backbone.config.vocab_size)
        head: Head
        if settings.expands:
            head = SpladeHead(language_model(transformer_place(self.folder), self.backbone))
        else:
            head = SparseHead(self._width, vocabulary, self.tokenizer.all_special_ids)
            head.load_state_dict(dict(self._weights(SPARSE)[0]))
        if not settings.query_table:
            return head
        table_V = self._weights(SPARSE)[-1]["weight"]
        if table_V.ndim != 1 or len(table_V) > vocabulary:
            raise ValueError(f"its table for queries has the shape {list(table_V.shape)}; it has {vocabulary} tokens")
        return QueryTableHead(head, pad(table_V, (0, vocabulary - len(table_V))), unspoken(self.tokenizer))

    @property
    def _width(self) -> int:
        return int(self.backbone.config.hidden_size)

    def _weights(self, kind: str) -> Sequence[Mapping[str, Tensor]]:
        """The weights of each of a head's linear layers."""
        if not self.is_one_of_several:
            return read_layers(self.folder)
        return [] if kind == DENSE else [read_head(self.folder, kind)]
