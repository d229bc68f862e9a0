"""The head of a model, from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from biencoder.config.choices import DENSE, SPARSE
from biencoder.errors import UserError
from biencoder.model.files.heads.combined import read_head
from biencoder.model.files.language_model import language_model
from biencoder.model.files.settings import ModelSettings, read_layers
from biencoder.model.heads.combined import CombinedHead
from biencoder.model.heads.dense import DenseHead
from biencoder.model.heads.head import Head
from biencoder.model.heads.multi_vector import MultiVectorHead
from biencoder.model.heads.projected import ProjectedHead
from biencoder.model.heads.projection import projections
from biencoder.model.heads.sparse import SparseHead
from biencoder.model.heads.splade import SpladeHead


@dataclass(frozen=True)
class StoredHead:
    """What a head is made from.

    Attributes:
        folder: of the model.
        path: of the model as a person named it, for messages.
        settings: with a pooling; of all heads, or of the one that is wanted.
        is_one_of_several: the folder has several heads.
        backbone: of the model.
        special: ids of tokens that stand for no word.
    """

    folder: Path
    path: str | Path
    settings: ModelSettings
    is_one_of_several: bool
    backbone: PreTrainedModel
    special: Sequence[int]

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
            if settings.expands:
                return SpladeHead(language_model(self.folder, self.backbone))
            sparse = SparseHead(self._width, int(self.backbone.config.vocab_size), self.special)
            sparse.load_state_dict(dict(self._weights(SPARSE)[0]))
            return sparse
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

    @property
    def _width(self) -> int:
        return int(self.backbone.config.hidden_size)

    def _weights(self, kind: str) -> Sequence[Mapping[str, Tensor]]:
        """The weights of each of a head's linear layers."""
        if not self.is_one_of_several:
            return read_layers(self.folder)
        return [] if kind == DENSE else [read_head(self.folder, kind)]
