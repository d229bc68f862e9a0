"""The masked-language head of a model, from its folder, on a backbone that is loaded already."""

from pathlib import Path

from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from biencoder.model.files.data_only import data_only
from biencoder.model.files.pretrained import load_weights


def language_model(folder: Path, backbone: PreTrainedModel) -> PreTrainedModel:
    """The masked language model in a folder, with ``backbone`` in the place of its own.

    Args:
        folder: of the model.
        backbone: of that model; it keeps no pooler, because a language model has none.

    Raises:
        ValueError: the folder has no masked-language head.
    """
    with data_only(folder, trust_remote_code=False) as seen:
        config = AutoConfig.from_pretrained(seen)
        model = load_weights(AutoModelForMaskedLM, seen, config, trust_remote_code=False)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    setattr(model, model.base_model_prefix, backbone)
    backbone.pooler = None
    if tied:
        model.get_output_embeddings().weight = backbone.get_input_embeddings().weight
    return model
