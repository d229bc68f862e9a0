"""Sharding: each rank holds some rows of every weight, of its gradient and of its moments (FSDP2, Zhao et al. 2023).

A layer gathers its weights from all ranks before it computes, and hands each rank the sum of its rows' gradients. So
every forward and backward pass is a collective: all ranks take equally many of them, see
:func:`alike_on_all_ranks`.
"""

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from biencoder.config import TrainConfig
from biencoder.config.choices import CPU, FP16, OFF, ON
from biencoder.device.choice import HALF, choose_device, facts, placed
from biencoder.distributed import max_over_ranks, world_size
from biencoder.errors import UserError
from biencoder.model.adapting.freezing import find_blocks
from biencoder.model.encoder import Encoder
from biencoder.model.files.pretrained import empty_backbone, locate
from biencoder.model.packing import Chunk, pack
from biencoder.model.parallel.sharded import is_sharded, widen_norms
from biencoder.terminal import say
from biencoder.training.memory.state import MOMENTS, StateBytes, state_of


@dataclass(frozen=True)
class Sharding:
    """What all ranks agree on before they load a model whose weights they may share.

    Attributes:
        config: the run's.
        device: where the model computes.
        mesh: the ranks.
        memory: bytes of the smallest device; 0 if weights are to be shared in any case.
    """

    config: TrainConfig
    device: torch.device
    mesh: DeviceMesh
    memory: int

    def place(self, encoder: Encoder) -> None:
        """Bring a model from the memory of the host to the device: a share of its weights, or all if they fit.

        The head stays whole, for it is small. This is no collective.

        Raises:
            UserError: sharding is asked for, and something else in the configuration or in the model does not go with
                it; or the weights do not fit the device.
        """
        obstacle = _obstacle(encoder)
        if self.config.shard == ON and obstacle is not None:
            raise UserError(f"--shard {ON}: {obstacle}; use --shard {OFF}")
        if obstacle is not None or state_of(encoder, 1).total <= self.memory:
            placed(encoder, self.device, self.config.model)
            return
        shard(encoder, self.mesh, offload=self.config.shard_offload)
        placed(encoder.head, self.device, self.config.model)
        say(_said(state_of(encoder, self.mesh.size()), self.mesh.size(), offloaded=self.config.shard_offload))


def agree_on_sharding(config: TrainConfig) -> Sharding | None:
    """What a run needs to know to share weights; None if it does not share any. A collective.

    A single process has nothing to share.

    Raises:
        UserError: there is no such model or device.
    """
    if config.shard == OFF or world_size() == 1:
        return None
    device = choose_device(config.device)
    memory = 0 if config.shard == ON else -max_over_ranks(-facts(device).memory())
    if memory and _whole_state(config) <= memory:
        return None
    return Sharding(config, device, init_device_mesh(device.type, (world_size(),)), memory)


def _whole_state(config: TrainConfig) -> int:
    """Bytes of weights, gradients and moments if all weights learn. The weights are not read for that."""
    empty = empty_backbone(locate(config.model), config.model, trust_remote_code=config.trust_remote_code)
    weights: int = sum(weight.numel() for weight in empty.parameters()) * torch.float32.itemsize
    return (2 + MOMENTS) * weights


def _obstacle(encoder: Encoder) -> str | None:
    """Why the model cannot be sharded, in half a sentence; None if it can."""
    kind = encoder.backbone.config.model_type
    if encoder.first_position is None:
        return f"{kind} runs in padded parts, whose number differs from process to process"
    if encoder.settings.static:
        return "a static model has no layers to shard"
    if encoder.settings.expands or encoder.settings.query_table:
        return "a head that uses the table of words, or leaves the layers out for queries, needs whole weights"
    if encoder.precision == FP16:
        return "the scale of gradients in fp16 needs whole gradients (bf16 does not)"
    try:
        find_blocks(encoder.backbone)
    except UserError:
        return f"{kind} has no list of layers to shard one by one"
    return None


def shard(encoder: Encoder, mesh: DeviceMesh, *, offload: bool = False) -> None:
    """Cut the weights of the backbone over all ranks: layer by layer, then what is in no layer.

    Layers are gathered in the precision of products. All else stays float32, because it begins the sums that run along
    the layers.

    Args:
        encoder: in the memory of the host, or on the device where it computes.
        mesh: all ranks, on that device.
        offload: keep rows that are not in use in the memory of the host.
    """
    backbone, half = encoder.backbone, HALF.get(encoder.precision or "")
    waiting = CPUOffloadPolicy(pin_memory=mesh.device_type != CPU) if offload else OffloadPolicy()
    narrow = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in find_blocks(backbone)[1]:
        widen_norms(layer)
        _share(fully_shard(layer, mesh=mesh, mp_policy=narrow, offload_policy=waiting))
    # Forward passes without a backward pass, as in evaluations, must leave nothing gathered either.
    _share(fully_shard(backbone, mesh=mesh, reshard_after_forward=True, offload_policy=waiting))


def _share(module: FSDPModule) -> None:
    """Sum gradients over ranks, where FSDP2 would average them: the loss is divided by the global batch already."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo knows no product before the sum


def _said(planned: StateBytes, ranks: int, *, offloaded: bool) -> str:
    parts = {"weights": planned.weights, "gradients": planned.gradients, "moments": planned.moments}
    held = ", ".join(f"{size / 1e9:.3f} GB of {name}" for name, size in parts.items())
    where = " in the host's memory" if offloaded else ""
    return (
        f"weights are sharded over {ranks} processes: each holds {held}{where}, and up to "
        f"{planned.gathered / 1e9:.3f} GB of gathered weights and their gradients"
    )


def alike_on_all_ranks(encoder: Encoder, chunks: list[Chunk], kept: int) -> tuple[list[Chunk], int]:
    """Chunks of which all ranks have equally many, and keep equally many, where each pass is a collective.

    A rank with fewer chunks than another one adds chunks without a text.

    Args:
        encoder: the model; nothing changes if it is not sharded.
        chunks: of this rank.
        kept: how many of them, from the first, keep their activations.
    """
    if not is_sharded(encoder.backbone):
        return chunks, kept
    most = max_over_ranks(len(chunks))
    kept = -max_over_ranks(-(most if kept == len(chunks) else kept))
    nothing = Chunk(pack([[0]]), torch.empty(0, dtype=torch.int64)).to(encoder.device)
    return chunks + [nothing] * (most - len(chunks)), kept
