"""``biencoder distill``: makes a static model out of a transformer."""

from biencoder.config import DistillConfig
from biencoder.config.choices import DENSE
from biencoder.files import refuse_filled
from biencoder.model.distilling import distill
from biencoder.model.encoder import Encoder
from biencoder.retrieval.texts import read_texts
from biencoder.terminal import progress_line, say


def run(config: DistillConfig) -> None:
    """The command: encode the vocabulary, write the folder, and say where it is.

    Raises:
        UserError: the folder holds something already, the model does not load, or it cannot be distilled.
    """
    folder = config.output_dir
    refuse_filled(folder)
    texts = None
    if config.texts is not None:
        next(read_texts(config.texts), None)  # a missing file is reported before the model is loaded
        texts = (row.text for row in read_texts(config.texts))
    encoder = Encoder.load(
        config.model,
        pooling=config.pooling,
        normalize=config.normalize,
        precision=config.precision,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    if encoder.settings.combined:
        encoder.keep_head(DENSE)
    with progress_line() as progress:
        made = distill(encoder, config.dim, texts=texts, progress=progress)
    made.save(folder)
    say(f"{folder}: a static model of {made.backbone.config.vocab_size:,} tokens and {made.dim} dimensions")
