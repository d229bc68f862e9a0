"""Small random models and tokenizers, made on the spot: no test downloads anything."""

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

WORDS = tuple(f"word{i}" for i in range(200))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = len(SPECIAL) + len(WORDS)

if TYPE_CHECKING:
    from biencoder import Encoder
    from biencoder.model.packing import PackedBatch

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,  # so large that attention is far from uniform
    "pad_token_id": 0,
}
_ROBERTA = _SIZES | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
_DECODER = _SIZES | {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}

# model_type -> (configuration class, arguments); a few kinds stand for a variant of one model_type.
ALL_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _SIZES),
    "electra": ("ElectraConfig", _SIZES | {"embedding_size": 16}),
    "ernie": ("ErnieConfig", _SIZES),
    "roberta": ("RobertaConfig", _ROBERTA),
    "xlm-roberta": ("XLMRobertaConfig", _ROBERTA),
    "camembert": ("CamembertConfig", _ROBERTA),
    "mpnet": ("MPNetConfig", _ROBERTA),
    "distilbert": (
        "DistilBertConfig",
        {k: v for k, v in _SIZES.items() if "size" not in k and not k.startswith("num")}
        | {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "modernbert": (
        "ModernBertConfig",
        _SIZES
        | {
            "num_hidden_layers": 4,  # layers 0 and 3 see everything, 1 and 2 a window of 5 tokens to either side
            "local_attention": 10,
            "global_attn_every_n_layers": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
    ),
    "nomic_bert": ("NomicBertConfig", _SIZES),
    "gte": ("GteConfig", _SIZES | {"type_vocab_size": 1}),
    "eurobert": ("EuroBertConfig", _DECODER),
    "qwen2": ("Qwen2Config", _DECODER),
    "qwen2-window": (
        "Qwen2Config",
        _DECODER | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2-bidirectional": ("Qwen2Config", _DECODER | {"is_causal": False}),
    "qwen3": ("Qwen3Config", _DECODER),
    "llama": ("LlamaConfig", _DECODER),
    "mistral": ("MistralConfig", _DECODER | {"sliding_window": 6}),
    "gemma": ("GemmaConfig", _DECODER),
    "deberta-v2": (
        "DebertaV2Config",
        _SIZES
        | {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
}
# Older releases of transformers lack some of them.
CONFIGS = {kind: config for kind, config in ALL_CONFIGS.items() if hasattr(transformers, config[0])}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout")
NO_DROPOUT = dict.fromkeys(DROPOUTS, 0.0)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of :data:`WORDS`, in ``[CLS]`` and ``[SEP]``."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=96,
    )


def tiny_model(folder: Path, kind: str = "bert", *, dropout: bool = False, seed: int = 0, **changes: Any) -> Path:
    """Save a random model of ``kind`` (a key of :data:`CONFIGS`) and its tokenizer into ``folder``."""
    name, arguments = CONFIGS[kind]
    chosen = arguments | ({} if dropout else NO_DROPOUT) | changes
    torch.manual_seed(seed)
    model = AutoModel.from_config(getattr(transformers, name)(**chosen))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains too, which start as zeros and ones
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_cross_encoder(folder: Path, kind: str = "bert", *, labels: int = 1) -> Path:
    """Save a random sequence classifier of ``kind`` and its tokenizer into ``folder``."""
    name, arguments = CONFIGS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**arguments | NO_DROPOUT, num_labels=labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def language_model(folder: Path, kind: str, **changes: Any) -> Path:
    """:func:`tiny_model` with a tokenizer as language models have them: nothing after a text, and no padding token.

    Qwen's puts nothing before a text either.
    """
    tiny_model(folder, kind, **changes)
    backend = tiny_tokenizer().backend_tokenizer
    before = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    backend.post_processor = processors.ByteLevel() if kind.startswith("qwen") else before
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]", model_max_length=96
    ).save_pretrained(folder)
    return folder


def random_texts(count: int, *, longest: int = 20, seed: int = 0) -> list[str]:
    """Texts of 1 to ``longest`` known words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def padded(lengths: Iterable[int], *, side: str = "right", padding: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids as a tokenizer would pad them: ``input_ids`` and ``attention_mask`` ``[N, L]``."""
    generator = torch.Generator().manual_seed(seed)
    lengths = list(lengths)
    ids = torch.full((len(lengths), max(lengths)), padding)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        part = slice(0, length) if side == "right" else slice(max(lengths) - length, None)
        ids[row, part] = torch.randint(len(SPECIAL), VOCABULARY, (length,), generator=generator)
        mask[row, part] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pool(hidden_NLD: Tensor, mask_NL: Tensor, pooling: str) -> Tensor:
    """Pooling by its definition, one text after the other: ``[N, D]``."""
    rows = [hidden[mask.bool()] for hidden, mask in zip(hidden_NLD, mask_NL, strict=True)]
    return torch.stack([{"cls": row[0], "last": row[-1], "mean": row.mean(0)}[pooling] for row in rows])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters' gradients by name, those that are trained."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def vectors_and_gradients(encoder: "Encoder", batch: "PackedBatch") -> tuple[Tensor, dict[str, Tensor]]:
    """Of a weighted sum over all components of the vectors, so that no two of them weigh alike."""
    encoder.backbone.zero_grad()
    vectors = encoder.embed(batch)
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return vectors, gradients(encoder.backbone)


def bf16_errors_of_attention(
    own: Callable[[Tensor, Tensor, Tensor], Tensor], texts: int, length: int, heads: int, size: int
) -> tuple[float, float]:
    """Largest relative error of the gradients of ``own``, under autocast, and of PyTorch's flash attention."""

    def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (texts, length)).transpose(1, 2) for x in (query, key, value))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

    generator = torch.Generator().manual_seed(0)
    shape = (texts * length, heads, size)
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)]
    query, key, value = exact = [x.clone().requires_grad_() for x in drawn]
    flash(query, key, value).square().sum().backward()
    errors = []
    for attention in (own, flash):
        query, key, value = rounded = [x.float().requires_grad_() for x in drawn]
        with torch.autocast("cpu", torch.bfloat16):
            attention(query, key, value).float().square().sum().backward()
        pairs = [(r.grad, e.grad) for r, e in zip(rounded, exact, strict=True)]
        errors.append(max(relative_error(r, e) for r, e in pairs if r is not None and e is not None))
    return errors[0], errors[1]


def bytes_kept(compute: Callable[[], object]) -> int:
    """What autograd keeps for the backward pass of ``compute``, a storage that several operations keep once."""
    storages: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def count(tensor: Tensor) -> Tensor:
        alive.append(tensor.detach())  # a graph that held its own outputs would hold itself
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return alive[-1]

    with saved_tensors_hooks(count, lambda tensor: tensor):
        compute()
    alive.clear()  # PyTorch goes on holding `count`
    return sum(storages.values())


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


def gradient_errors(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], smallest: float = 1e-3
) -> tuple[float, float]:
    """The largest relative error of any one parameter's gradient, and that of all of them as one vector.

    Some gradients are zero but for rounding (a key's bias shifts all scores of a query alike, which softmax does not
    see), others nearly cancel (the last bias moves all vectors alike): an error counts against the norm of its
    parameter's gradient, or ``smallest`` times the norm of the largest one, whichever is more.
    """
    assert got.keys() == want.keys()
    norms = {name: float(gradient.double().norm()) for name, gradient in want.items()}
    differences = {name: float((got[name].double() - want[name].double()).norm()) for name in want}
    least = smallest * max(norms.values())
    assert least > 0
    worst = max(differences[name] / max(norms[name], least) for name in want)
    overall = sum(d**2 for d in differences.values()) ** 0.5 / sum(n**2 for n in norms.values()) ** 0.5
    return worst, overall
