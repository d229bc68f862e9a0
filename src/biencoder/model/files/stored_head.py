"""The head of a model, from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from biencoder.config.choices import DENSE, SPARSE
from biencoder.errors import UserError
from biencoder.model.files.heads.combined import read_head
from biencoder.model.files.settings import ModelSettings, read_layers
from biencoder.model.heads.combined import CombinedHead
from biencoder.model.heads.dense import DenseHead
from biencoder.model.heads.head import Head
from biencoder.model.heads.multi_vector import MultiVectorHead
from biencoder.model.heads.projected import ProjectedHead
from biencoder.model.heads.projection import projections
from biencoder.model.heads.sparse import SparseHead


@dataclass(frozen=True)
class StoredHead:
    """What a head is made from.

    Attributes:
        folder: of the model.
        path: of the model as a person named it, for messages.
        settings: with a pooling; of all heads, or of the one that is wanted.
        is_one_of_several: the folder has several heads.
        width: hidden size of the backbone.
        vocabulary: number of tokens.
        special: ids of tokens that stand for no word.
    """

    folder: Path
    path: str | Path
    settings: ModelSettings
    is_one_of_several: bool
    width: int
    vocabulary: int
    special: Sequence[int]

    @classmethod
    def of(
        cls,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        path: str | Path,
        settings: ModelSettings,
        *,
        is_one_of_several: bool,
    ) -> "StoredHead":
        """What the head of a model with this backbone is made from."""
        width, vocabulary = int(backbone.config.hidden_size), int(backbone.config.vocab_size)
        return cls(folder, path, settings, is_one_of_several, width, vocabulary, tokenizer.all_special_ids)

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
            sparse = SparseHead(self.width, self.vocabulary, self.special)
            sparse.load_state_dict(dict(self._weights(SPARSE)[0]))
            return sparse
        head: ProjectedHead
        layers = projections(settings.layers, self.width, self._weights(settings.heads))
        if settings.multi:
            head = MultiVectorHead(self.width, layers=layers, dim=dim, skips_first=settings.skips_first)
        else:
            pooling, normalize = settings.pooling, bool(settings.normalize)
            assert pooling is not None
            head = DenseHead(self.width, pooling=pooling, normalize=normalize, layers=layers, dim=dim)
        if head.dim > head.full_dim:
            raise UserError(f"--dim {dim}: {self.path} makes {head.full_dim} dimensions")
        return head

    def _weights(self, kind: str) -> Sequence[Mapping[str, Tensor]]:
        """The weights of each of a head's linear layers."""
        if not self.is_one_of_several:
            return read_layers(self.folder)
        return [] if kind == DENSE else [read_head(self.folder, kind)]
