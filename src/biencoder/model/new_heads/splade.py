"""From a model with one vector a text to one with weights for words that its masked-language head finds likely."""

from dataclasses import replace

from biencoder.config.choices import MEAN, SPARSE
from biencoder.errors import UserError, first_line
from biencoder.model.encoder import Encoder
from biencoder.model.files.language_model import language_model
from biencoder.model.files.pretrained import UNREADABLE, locate
from biencoder.model.files.settings import transformer_place
from biencoder.model.heads.splade import SpladeHead
from biencoder.terminal import say


def make_splade(encoder: Encoder, path: str) -> None:
    """Replace the head by the masked-language head that is in the model's folder.

    Args:
        encoder: with a dense head and no linear layers.
        path: folder or hub name of the model.

    Raises:
        UserError: the folder has no such head.
    """
    try:
        head = SpladeHead(language_model(transformer_place(locate(path)), encoder.backbone))
    except UNREADABLE as error:
        raise UserError(
            f"--expand-words: {path} has no masked-language head that biencoder runs ({first_line(error)}). Take the "
            "base model before it was tuned for embeddings"
        ) from error
    encoder.adopt(
        replace(encoder.settings, heads=SPARSE, expands=True, pooling=MEAN, normalize=False, similarity="dot")
    )
    encoder.head = head.to(encoder.device)
    say(f"the weights of words are those of the masked-language head of {path}")
