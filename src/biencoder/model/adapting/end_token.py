"""A decoder's text ends in an end-of-sequence token, whose vector is the text's.

A causal model has seen the whole text at its last token only, and a token that stands for the end says more there than
whatever word happens to be the last (Wang et al. 2024, "Improving Text Embeddings with Large Language Models", section
3.2). The tokenizer itself adds it, in its post-processor, which is a part of ``tokenizer.json``: so it is there for
everyone who loads the model, and truncation makes room for it.
"""

import json
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

PROBE = "a"


def is_closed(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a token of its own after a text."""
    bare = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    return list(tokenizer(PROBE)["input_ids"])[-len(bare) :] != bare


def close_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Let the tokenizer put its end-of-sequence token after each text, unless something stands there already.

    Returns:
        Whether a token ends each text now; a tokenizer without such a token, or not of the ``tokenizers`` library, has
        no way to put it there.
    """
    if is_closed(tokenizer):
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer.eos_token is None or not isinstance(backend, Tokenizer):
        return False
    present = backend.post_processor
    state = None if present is None else json.loads(present.__getstate__())
    backend.post_processor = _from_state(_closed(state, tokenizer.eos_token, tokenizer.eos_token_id))
    return is_closed(tokenizer)


def _closed(state: dict[str, Any] | None, token: str, number: int) -> dict[str, Any]:
    """The post-processor's state, with ``token`` after what its template puts around a text."""
    steps = [] if state is None else state["processors"] if state["type"] == "Sequence" else [state]
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        text = {name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}
        template = {"type": "TemplateProcessing", "single": [text["A"]], "pair": [*text.values()], "special_tokens": {}}
        steps.append(template)
    for kind in ("single", "pair"):
        template[kind].append({"SpecialToken": {"id": token, "type_id": 0}})
    template["special_tokens"][token] = {"id": token, "ids": [number], "tokens": [token]}
    return {"type": "Sequence", "processors": steps}


def _from_state(state: dict[str, Any]) -> Any:
    """A post-processor is only made from JSON as a part of a tokenizer."""
    whole = json.loads(Tokenizer(models.BPE()).to_str()) | {"post_processor": state}
    return Tokenizer.from_str(json.dumps(whole)).post_processor
