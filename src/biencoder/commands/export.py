"""``biencoder export``: writes a model in another tool's format, and checks that it gives the same vectors."""

from pathlib import Path

from biencoder.config import ExportConfig
from biencoder.config.choices import CPU
from biencoder.errors import UserError
from biencoder.files import refuse_filled
from biencoder.model.encoder import Encoder
from biencoder.model.parity import parity
from biencoder.terminal import say

LARGEST_DIFFERENCE = 1e-5  # between components of vectors of length 1, in float32


def run(config: ExportConfig) -> None:
    """The command: write the folder, load it again, compare, and say where it is.

    Raises:
        UserError: the folder holds something already, the model does not load, or the copy gives other vectors.
    """
    folder: Path = config.output_dir
    refuse_filled(folder)
    trust = config.trust_remote_code
    encoder = Encoder.load(
        config.model, pooling=config.pooling, normalize=config.normalize, device=CPU, trust_remote_code=trust
    )
    encoder.save(folder)
    difference = parity(encoder, Encoder.load(folder, device=CPU, trust_remote_code=trust))
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{folder}: the vectors of the copy differ from the model's by {difference:.1e}; do not use it")
    within = f"within {difference:.0e}" if difference else "exactly"
    say(f"{folder}: {config.format} format; its vectors equal the model's {within}")
