"""The blocks of a transformer, and which of its weights learn."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from biencoder.errors import UserError


def find_blocks(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of the list of transformer blocks inside of ``backbone``, and the list.

    Raises:
        UserError: the architecture keeps its blocks in another way (ALBERT, say, has one that it uses many times).
    """
    config: Any = backbone.config
    count = getattr(config, "num_hidden_layers", None)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(
        f"--freeze-layers, --freeze-embeddings and --lora-rank: {config.model_type} has no list of layers in which "
        "biencoder could tell one from another; leave them out"
    )


def freeze(backbone: nn.Module, *, embeddings: bool, layers: int) -> None:
    """Let the embeddings and the first blocks learn nothing.

    The backward pass ends at the first weight that learns, and keeps nothing from before it.

    Args:
        backbone: a transformers model.
        embeddings: freeze embedding tables and all else before the first block; ``layers`` above 0 do so too.
        layers: how many blocks to freeze, from the first.

    Raises:
        UserError: more blocks than there are.
    """
    if not embeddings and not layers:
        return
    _, blocks = find_blocks(backbone)
    if layers > len(blocks):
        raise UserError(f"--freeze-layers {layers}: the model has {len(blocks)} layers; freeze fewer")
    for part in (*_before(backbone, blocks), *blocks[:layers]):
        part.requires_grad_(False)
    for block in blocks[:layers]:
        block.gradient_checkpointing = False  # type: ignore[assignment]  # nothing is kept to be computed again


def _before(backbone: nn.Module, blocks: nn.ModuleList) -> Iterator[nn.Module]:
    """Modules whose output does not depend on any block; tables of relative positions, kept beside the blocks, too."""
    inside = set(blocks.modules())
    yield from (module for module in backbone.modules() if isinstance(module, nn.Embedding) and module not in inside)
    for child in backbone.children():
        if blocks in child.modules():
            return
        yield child
