"""LoRA (Hu et al. 2022) through peft: each linear layer of the blocks learns a product of two thin matrices only.

An adapter that is loaded is merged into the weights of its base, so that what is loaded is a model like any other;
only `biencoder export` can leave it beside them.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from biencoder.errors import UserError, require_package
from biencoder.model.adapting.freezing import find_blocks
from biencoder.model.dropout import use_own_dropout

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names in it

# The settings of an adapter that are used, and those that say nothing of the vectors.
HANDLED = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "use_rslora", "use_dora", "base_model_name_or_path",
)  # fmt: skip
INITIALISATIONS = (True, False, None, "gaussian")  # those that leave the weights of the base as they are
FREE = ("init_lora_weights", "peft_type", "peft_version", "task_type", "revision", "inference_mode", "auto_mapping",
        "loftq_config", "runtime_config", "eva_config", "corda_config", "megatron_core",
        "qalora_group_size")  # fmt: skip


def add_lora(
    backbone: PreTrainedModel, *, rank: int, alpha: float, dropout: float, first_layer: int, base: str, seed: int
) -> None:
    """Freeze ``backbone`` and put LoRA beside all linear layers of its blocks; the vectors are the same at first.

    Args:
        backbone: a transformers model.
        rank: of the products.
        alpha: they are scaled by ``alpha / rank``.
        dropout: probability with which an element of their input is dropped in training.
        first_layer: blocks before it get none.
        base: folder or hub name, which an adapter folder will name as its base.
        seed: of the first matrices; the second ones are zero.

    Raises:
        UserError: peft is not installed, or there is no linear layer to put it beside.
    """
    require_package("peft", "--lora-rank", "lora")
    from peft import LoraConfig

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_linear_layers(backbone, first_layer)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone.add_adapter(config)
    backbone.peft_config["default"].base_model_name_or_path = base
    for _, _, layer in _lora_layers(backbone):
        layer.cast_input_dtype_enabled = False  # autocast does that, and a float32 copy would be kept as well
    use_own_dropout(backbone)


def merge_lora(backbone: PreTrainedModel) -> None:
    """Add the products to the weights beside which they stand: the same vectors, from plain linear layers."""
    for parent, name, layer in _lora_layers(backbone):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())
    backbone.delete_adapter(list(backbone.peft_config))


def load_adapter(backbone: PreTrainedModel, folder: Path, settings: dict[str, Any]) -> None:
    """Load the adapter in ``folder`` into ``backbone``, its base, beside whose weights it stands.

    Args:
        backbone: the adapter's base model.
        folder: of the adapter.
        settings: what its ``adapter_config.json`` holds.

    Raises:
        UserError: peft is not installed.
        ValueError: the adapter has no weights in safetensors, or they are of another base.
    """
    require_package("peft", f"{folder}, an adapter,", "lora")
    from peft import LoraConfig, set_peft_model_state_dict

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"no {ADAPTER_WEIGHTS} in it; an adapter_model.bin is not read, for a pickle can run code")
    config = LoraConfig(**_handled_settings(settings, LoraConfig().to_dict()))
    weights = load_file(folder / ADAPTER_WEIGHTS)
    try:
        backbone.add_adapter(config)
        report = set_peft_model_state_dict(backbone, {name.removeprefix(PREFIX): w for name, w in weights.items()})
    except (RuntimeError, ValueError) as error:  # other sizes, other names
        raise ValueError(f"its adapter does not fit its base model {config.base_model_name_or_path}") from error
    wrong = [*report.unexpected_keys, *(name for name in report.missing_keys if "lora_" in name)]
    if wrong:
        raise ValueError(f"its adapter does not fit its base model: {wrong[0]}, one of {len(wrong)}")


def _handled_settings(saved: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """What an adapter's configuration says of the products, and nothing by which peft would import or load more.

    Raises:
        ValueError: it sets something that changes the vectors and is not handled.
    """
    handled = {name: saved[name] for name in HANDLED if name in saved}
    if saved.get("init_lora_weights", True) not in INITIALISATIONS:
        raise ValueError(f"its adapter sets init_lora_weights to {saved['init_lora_weights']!r}, which is not handled")
    for name, value in saved.items():
        if name not in HANDLED and name not in FREE and value and value != usual.get(name):
            raise ValueError(f"its adapter sets {name}, which is not handled")
    return handled


def _linear_layers(backbone: nn.Module, first_layer: int) -> str:
    """A pattern for the names of the linear layers of all blocks from ``first_layer``."""
    name, blocks = find_blocks(backbone)
    layers = list(blocks)[first_layer:]
    linear = {part for block in layers for part, module in block.named_modules() if isinstance(module, nn.Linear)}
    if not linear:
        kind: Any = backbone.config
        among = f"the {len(layers)} layers that are not frozen, of {len(blocks)}" if first_layer else "the layers"
        raise UserError(f"--lora-rank: {kind.model_type} has no linear layer for it in {among}")
    numbers = "|".join(str(number) for number in range(first_layer, len(blocks)))
    return rf"{re.escape(name)}\.({numbers})\.({'|'.join(re.escape(part) for part in sorted(linear))})"


def _lora_layers(backbone: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Each layer with LoRA, after the module that holds it and the name by which it does."""
    from peft.tuners.lora import LoraLayer

    return [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, LoraLayer)
    ]
