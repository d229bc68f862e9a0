"""What one of W processes does in the tests of world-size invariance, and the truth that it is compared with.

The truth is plain transformers in float64 on padded input, with loops over the definition of the loss.
"""

import itertools
import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from native_kernels import NATIVE_SIZES
from safetensors.torch import load_file
from tiny import DROPOUTS, VOCABULARY, gradients, padded, pool, random_texts, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from biencoder import BiEncoderModel, Encoder
from biencoder.config.choices import FLOPS, L1
from biencoder.data.plan.sampling import BatchPlan, KnownPositives, Sampler, share
from biencoder.data.table import ExampleTable
from biencoder.distributed import sum_gradients
from biencoder.model.adapting.lora import add_lora
from biencoder.model.architectures.static import StaticModel
from biencoder.model.files.settings import ModelSettings
from biencoder.model.files.static import without_special_tokens
from biencoder.model.heads.combined import CombinedHead
from biencoder.model.heads.dense import DenseHead
from biencoder.model.heads.multi_vector import MultiVectorHead
from biencoder.model.heads.projection import DenseLayer, Projection
from biencoder.model.heads.query_table import QueryTableHead
from biencoder.model.heads.sparse import SparseHead
from biencoder.model.new_heads.splade import make_splade
from biencoder.objective.combined import CombinedObjective
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.sparsity import Sparsity
from biencoder.training import gradcache
from biencoder.training.batch import Batcher, Prompts
from biencoder.training.guide import Guide

TEMPERATURE = 0.3
WEIGHT = 0.7  # of the distillation, in the trainer
SPARSITY = 0.4  # weight of the regulariser of weights for tokens
QUERY_PROMPT = "word5 "
GUIDE_MARGIN = 0.02

PRELOADED = [
    "world",
    *(f"biencoder.commands.{name}" for name in ("data.mine", "data.score", "diff", "encode", "search")),
]
Outcome = tuple[float, dict[str, Tensor]]  # a loss, and the parameters' gradients


def run(world: int, folder: Path, work: Callable[[int, int, Path], Any]) -> list[Any]:
    """``work(rank, world, folder)`` in ``world`` processes that form a gloo group: what each of them returned."""
    assert start(world, folder, work) == [0] * world
    return [torch.load(folder / f"{work.__name__}-{world}-{rank}.pt") for rank in range(world)]


def start(world: int, folder: Path, work: Callable[[int, int, Path], Any]) -> list[int | None]:
    """The same: the exit code of each process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=_rank, args=(rank, world, folder, work)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _rank(rank: int, world: int, folder: Path, work: Callable[[int, int, Path], Any]) -> None:
    torch.set_num_threads(1)
    name = f"{work.__name__}-{world}"
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}-meet", rank=rank, world_size=world)
    torch.save(work(rank, world, folder), folder / f"{name}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


Text = Tensor | tuple[Tensor, ...]  # a vector, the vectors of its tokens, or what each of several heads makes of it
Texts = Tensor | Sequence[Text]
HEAD_WEIGHTS, HEAD_LOSS_WEIGHTS = (1.0, 0.3, 0.8), (1.0, 0.2, 0.7)


def similarity(query: Text, passage: Text) -> Tensor:
    """The inner product of two texts' vectors; the mean of the best matches where a text has several.

    For several heads, the weighted sum of these.
    """
    if isinstance(query, tuple):
        of_heads = zip(HEAD_WEIGHTS, query, passage, strict=True)
        return torch.stack([weight * similarity(mine, theirs) for weight, mine, theirs in of_heads]).sum()
    assert isinstance(passage, Tensor)
    return query @ passage if query.dim() == 1 else (query @ passage.T).amax(dim=1).mean()


def mean_loss(
    queries: Texts,
    passages: Texts,
    groups: list[list[int]],
    candidates: list[list[int]],
    teacher: list[dict[int, float]],
    weight: float,
    askers: list[list[int]] | None = None,
    margins: bool = False,
) -> Tensor:
    """The mean loss of the queries, by definition.

    Args:
        queries: B of them.
        passages: P of them.
        groups: of each query, the passages of its group, its positive first.
        candidates: of each query, the passages that the positive must beat, and the positive.
        teacher: of each query, the teacher's scores of passages that it scored.
        weight: of the distillation.
        askers: of each query's positive, the queries among which it must find its own; None for one way alone.
        margins: distil the margins to the positive, not the distribution.
    """
    total = torch.zeros((), dtype=torch.float64)
    for i, query in enumerate(queries):
        score = {j: similarity(query, passages[j]) / TEMPERATURE for j in {*candidates[i], *groups[i]}}
        contrast = torch.stack([score[j] for j in candidates[i]]).logsumexp(0) - score[groups[i][0]]
        if askers is not None:
            asked = {j: similarity(queries[j], passages[groups[i][0]]) / TEMPERATURE for j in askers[i]}
            contrast = (contrast + torch.stack(list(asked.values())).logsumexp(0) - asked[i]) / 2
        total = total + contrast
        if len(teacher[i]) > 1 and margins:
            first, *others = teacher[i]
            errors = [score[first] - score[j] - (teacher[i][first] - teacher[i][j]) for j in others]
            total = total + weight * torch.stack(errors).square().mean()
        elif len(teacher[i]) > 1:
            student = torch.stack([score[j] for j in teacher[i]]).log_softmax(0)
            total = total - weight * (torch.tensor(list(teacher[i].values())).double().softmax(0) * student).sum()
    return total / len(queries)


def loss_of_heads(
    queries: Sequence[tuple[Tensor, ...]],
    passages: Sequence[tuple[Tensor, ...]],
    candidates: list[list[int]],
    loss: Callable[[Texts, Texts], Tensor],
) -> Tensor:
    """The loss of each head and that of their sum; and what each head learns from the sum."""
    sides = [([text[head] for text in queries], [text[head] for text in passages]) for head in range(3)]
    weights = torch.tensor(HEAD_LOSS_WEIGHTS, dtype=torch.float64)
    alone = torch.stack([loss(*side) for side in sides])
    total = ((weights * alone).sum() + loss(queries, passages)) / (weights.sum() + 1)
    learnt = []
    for asked, found in sides:
        entropies = [torch.zeros((), dtype=torch.float64)]
        for i, among in enumerate(candidates):
            if len(among) > 1:
                whole, own = (
                    torch.stack([similarity(query, side[j]) / TEMPERATURE for j in among])
                    for query, side in ((queries[i], passages), (asked[i], found))
                )
                entropies.append(-(whole.detach().softmax(0) * own.log_softmax(0)).sum())
        learnt.append(torch.stack(entropies).sum() / len(queries))
    return (total + (weights * torch.stack(learnt)).sum() / weights.sum()) / 2


def sparsity(queries: Sequence[Text], passages: Sequence[Text], norm: str) -> Tensor:
    """The regulariser of the weights of words, over the whole vocabulary, for both kinds of texts."""
    found = []
    for texts in (queries, passages):
        weights = torch.stack([text[1] if isinstance(text, tuple) else text for text in texts])
        found.append(weights.mean(dim=0).square().sum() if norm == FLOPS else weights.sum(dim=1).mean())
    return found[0] + found[1]


def cut(vectors: Tensor, dim: int | None) -> Tensor:
    return torch.nn.functional.normalize(vectors[..., :dim], dim=-1)


def unit_vectors(model: Any, features: Any) -> Tensor:
    """Mean-pooled vectors of length 1, of padded features: ``[N, D]``."""
    vectors = pool(model(**features).last_hidden_state, features["attention_mask"], "mean")
    return torch.nn.functional.normalize(vectors, dim=-1)


def outcome(model: Any, loss: Tensor) -> Outcome:
    loss.backward()
    found = {name: gradient for name, gradient in gradients(model).items() if "pooler" not in name}
    model.zero_grad()
    return float(loss.detach()), found


# --- the models -------------------------------------------------------------------------------------------------------

BERT, DENSE, STATIC, MULTI, SPARSE, THREE = "bert", "dense", "static", "multi", "sparse", "three"
WORDS_TOO, TABLE = "splade", "table"
LAYER = DenseLayer(64, 40, bias=True, activation="Tanh", residual=True)
TOKEN_LAYER = DenseLayer(64, 40, bias=False, activation="Identity")
SKIPPED = ("word3", "word20", "word77")  # have no vector in a passage
EXPANSION = 9  # tokens to which short queries are filled, and long ones are cut


def write_models(folder: Path) -> None:
    """A transformer, the same with every other head, a table of vectors, and a guide."""
    tiny_model(folder / BERT, **NATIVE_SIZES)  # by compiled kernels, where there are any
    tiny_model(folder / "guide", seed=1)
    encoder = Encoder.load(folder / BERT, pooling="mean", normalize=True)
    assert isinstance(encoder.head, DenseHead)
    torch.manual_seed(2)
    encoder.head = encoder.head.followed_by(Projection(LAYER))
    encoder.adopt(replace(encoder.settings, layers=(LAYER,)))
    encoder.save(folder / DENSE)
    encoder.adopt(replace(encoder.settings, layers=()))
    sparse_head = SparseHead(64, VOCABULARY, encoder.tokenizer.all_special_ids)
    with torch.no_grad():
        sparse_head.linear.bias.fill_(0.3)  # most weights are above 0
    sparse = replace(encoder.settings, heads="sparse", normalize=False)
    Encoder(encoder.backbone, sparse_head, encoder.tokenizer, sparse).save(folder / SPARSE)
    torch.manual_seed(5)
    with_table = QueryTableHead(sparse_head, torch.rand(VOCABULARY) - 0.1, encoder.unspoken_ids)
    asked = replace(sparse, query_table=True)
    Encoder(encoder.backbone, with_table, encoder.tokenizer, asked).save(folder / TABLE)
    token_head = MultiVectorHead(64, layers=[Projection(TOKEN_LAYER)], skips_first=True)
    heads = {"dense": DenseHead(64, pooling="mean", normalize=True), "sparse": sparse_head, "multi": token_head}
    three: dict[str, Any] = {"layers": (TOKEN_LAYER,), "weights": HEAD_WEIGHTS, "skips_first": True}
    settings = replace(encoder.settings, heads=",".join(heads), **three)
    Encoder(encoder.backbone, CombinedHead(heads, HEAD_WEIGHTS), encoder.tokenizer, settings).save(folder / THREE)
    encoder.head = MultiVectorHead(64, layers=[Projection(TOKEN_LAYER)])
    encoder.tokenizer.mask_token = "word9"
    own: dict[str, Any] = {"layers": (TOKEN_LAYER,), "skipped": SKIPPED, "query_expansion": EXPANSION}
    encoder.adopt(replace(encoder.settings, heads="multi", **own))
    encoder.save(folder / MULTI)
    config = AutoConfig.from_pretrained(folder / BERT)
    torch.manual_seed(4)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "language")
    tiny_tokenizer().save_pretrained(folder / "language")
    words_too = Encoder.load(folder / "language")
    make_splade(words_too, str(folder / "language"))
    words_too.save(folder / WORDS_TOO)
    settings = ModelSettings(pooling="mean", normalize=True, max_length=96, static=True)
    tokenizer = without_special_tokens(tiny_tokenizer().backend_tokenizer)
    table = StaticModel.of(torch.randn(VOCABULARY, 48))
    Encoder(table, DenseHead(48, pooling="mean", normalize=True), tokenizer, settings).save(folder / STATIC)


class Truth(nn.Module):
    """One of the models in plain float64; its parameters have the names that ours have."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.kind = folder.name
        if self.kind == STATIC:
            weight = load_file(folder / "model.safetensors")["embedding.weight"].double()
            self.backbone = nn.ModuleDict({"embedding": nn.Embedding.from_pretrained(weight, freeze=False)})
        elif self.kind == WORDS_TOO:
            model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64)
            self.backbone = model.bert
            predictions = model.cls.predictions
            self.head = nn.ModuleDict({"transform": predictions.transform})
            self.head.register_parameter("bias", predictions.bias)
        else:
            self.backbone = AutoModel.from_pretrained(folder, dtype=torch.float64)
        if self.kind == DENSE:
            layer = Projection(LAYER).double()
            layer.load_state_dict(load_file(folder / "2_Dense" / "model.safetensors"))
            self.head = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        if self.kind == MULTI:
            layer = Projection(TOKEN_LAYER).double()
            layer.load_state_dict(load_file(folder / "1_Dense" / "model.safetensors"))
            self.head = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        if self.kind in (SPARSE, TABLE):
            linear = nn.Linear(64, 1).double()
            weights = load_file(folder / "1_SparseLinear" / "model.safetensors")
            linear.load_state_dict({name.removeprefix("linear."): weight for name, weight in weights.items()})
            self.head = nn.ModuleDict({"linear": linear})
        if self.kind == TABLE:
            self.head = nn.ModuleDict({"passages": self.head})
            weight = load_file(folder / "query_0_SparseStaticEmbedding" / "model.safetensors")["weight"]
            self.head.register_parameter("weights_V", nn.Parameter(weight.double()))
        if self.kind == THREE:
            self.head = nn.ModuleDict({"parts": nn.ModuleDict(self.parts_of(folder))})

    @staticmethod
    def parts_of(folder: Path) -> dict[str, nn.Module]:
        sparse, token = nn.Linear(64, 1).double(), nn.Linear(64, 40, bias=False).double()
        sparse.load_state_dict(load_file(folder / "sparse_linear.safetensors"))
        token.load_state_dict(load_file(folder / "colbert_linear.safetensors"))
        layer = nn.ModuleDict({"linear": token})
        return {
            "sparse": nn.ModuleDict({"linear": sparse}),
            "multi": nn.ModuleDict({"layers": nn.ModuleList([layer])}),
        }

    def forward(self, texts: list[str], *, passages: bool = False) -> Texts:
        """Vectors of length 1: one for each text, or one for each of its tokens that is compared."""
        if self.kind == THREE:
            return [self.of_heads(text) for text in texts]
        if self.kind == MULTI:
            return [self.of_tokens(text, passages) for text in texts]
        if self.kind == SPARSE:
            return [self.of_words(text) for text in texts]
        if self.kind == TABLE:
            return [self.of_words(text, "head.passages.linear") if passages else self.of_table(text) for text in texts]
        if self.kind == WORDS_TOO:
            return [self.of_all_words(text) for text in texts]
        if self.kind == STATIC:
            rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            vectors = torch.stack([self.backbone["embedding"](torch.tensor(row)).mean(0) for row in rows])
            return torch.nn.functional.normalize(vectors, dim=-1)
        features = self.tokenizer(texts, padding=True, return_tensors="pt")
        if self.kind == BERT:
            return unit_vectors(self.backbone, features)
        pooled = pool(self.backbone(**features).last_hidden_state, features["attention_mask"], "mean")
        own = dict(self.named_parameters())
        weight, bias = own["head.layers.0.linear.weight"], own["head.layers.0.linear.bias"]
        beside = own["head.layers.0.residual.weight"]
        return torch.nn.functional.normalize((pooled @ weight.T + bias).tanh() + pooled @ beside.T, dim=-1)

    def of_tokens(self, text: str, passage: bool) -> Tensor:
        most = None if passage else EXPANSION
        ids = torch.tensor(self.tokenizer(text, truncation=not passage, max_length=most)["input_ids"])
        if not passage:
            ids = torch.cat([ids, ids.new_full((max(0, EXPANSION - len(ids)),), self.tokenizer.mask_token_id)])
        hidden = self.backbone(input_ids=ids[None]).last_hidden_state[0]
        weight = dict(self.named_parameters())["head.layers.0.linear.weight"]
        skipped = self.tokenizer.convert_tokens_to_ids(list(SKIPPED))
        kept = [place for place, number in enumerate(ids.tolist()) if not passage or number not in skipped]
        return torch.nn.functional.normalize(hidden[kept] @ weight.T, dim=-1)

    def of_heads(self, text: str) -> tuple[Tensor, ...]:
        ids = self.tokenizer(text)["input_ids"]
        hidden = self.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
        weight = dict(self.named_parameters())["head.parts.multi.layers.0.linear.weight"]
        dense = torch.nn.functional.normalize(hidden.mean(dim=0), dim=-1)
        tokens = torch.nn.functional.normalize(hidden[1:] @ weight.T, dim=-1)
        return dense, self.of_words(text, "head.parts.sparse.linear"), tokens

    def of_all_words(self, text: str) -> Tensor:
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        hidden = self.head["transform"](self.backbone(input_ids=ids).last_hidden_state[0])
        own = dict(self.named_parameters())
        scores = hidden @ own["backbone.embeddings.word_embeddings.weight"].T + own["head.bias"]
        found: Tensor = scores.amax(dim=0).relu().log1p()
        return found

    def of_table(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        has = torch.zeros(VOCABULARY, dtype=torch.float64).index_fill(0, torch.tensor(ids), 1)
        return has * dict(self.named_parameters())["head.weights_V"].relu()

    def of_words(self, text: str, layer: str = "head.linear") -> Tensor:
        ids = self.tokenizer(text)["input_ids"]
        hidden = self.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
        own = dict(self.named_parameters())
        weights = (hidden @ own[f"{layer}.weight"][0] + own[f"{layer}.bias"]).relu()
        found = [torch.zeros((), dtype=torch.float64) for _ in range(VOCABULARY)]
        for number, weight in zip(ids, weights, strict=True):
            if number not in self.tokenizer.all_special_ids and weight > found[number]:
                found[number] = weight
        return torch.stack(found)


# --- the trainer's way: accumulate_gradients, then sum_gradients ------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """A way to train on a global batch."""

    queries: int  # 7 make uneven shares; 3 leave one of four ranks without any
    taught: bool
    masked: bool
    in_batch: bool
    cross_device: bool
    two_way: bool = False
    distillation: str = "kl"
    dims: tuple[int, ...] = ()
    guided: bool = False
    sparsity: str = ""
    model: str = BERT


PLAIN = [
    Combination(queries, taught, masked, in_batch, cross_device)
    for queries in (7, 3)
    for taught, masked, in_batch, cross_device in itertools.product((True, False), repeat=4)
]
VARIANTS: list[dict[str, Any]] = [
    {"two_way": True},
    {"distillation": "margin-mse"},
    {"dims": (32, 12, 5)},
    {"guided": True},
    {"two_way": True, "distillation": "margin-mse", "dims": (32, 12, 5), "guided": True},
]
VARIED = [Combination(queries, True, True, True, True, **variant) for variant in VARIANTS for queries in (7, 3)]
VARIED += [
    Combination(queries, True, True, True, True, **variant, model=model)
    for model, variant, queries in itertools.product((DENSE, STATIC, MULTI), ({}, VARIANTS[-1]), (7, 3))
]
VARIED += [
    Combination(7, True, True, True, False, **VARIANTS[-1]),
    Combination(7, True, False, True, True, **VARIANTS[-1]),
    Combination(7, True, True, False, True, distillation="margin-mse", dims=(12,), guided=True),
    Combination(7, True, True, False, True, model=MULTI),
    Combination(7, True, True, True, True, two_way=True, model=MULTI),
    *(Combination(queries, True, True, True, True, two_way=True, guided=True, model=SPARSE) for queries in (7, 3)),
    Combination(7, True, True, True, True, distillation="margin-mse", model=SPARSE),
    Combination(7, True, True, False, True, model=SPARSE),
    *(
        Combination(queries, True, True, True, True, sparsity=norm, model=SPARSE)
        for norm, queries in itertools.product((FLOPS, L1), (7, 3))
    ),
    Combination(7, True, True, True, False, two_way=True, sparsity=FLOPS, model=SPARSE),
    Combination(7, True, True, True, True, two_way=True, sparsity=FLOPS, model=THREE),
    *(Combination(queries, True, True, True, True, two_way=True, guided=True, model=THREE) for queries in (7, 3)),
    Combination(7, False, True, True, True, model=THREE),
    *(
        Combination(queries, True, True, True, True, two_way=True, sparsity=FLOPS, model=WORDS_TOO)
        for queries in (7, 3)
    ),
    Combination(7, True, True, False, True, model=WORDS_TOO),
    Combination(7, True, True, False, True, model=THREE),
    *(
        Combination(queries, True, True, True, True, two_way=True, sparsity=L1, guided=True, model=TABLE)
        for queries in (7, 3)
    ),
    Combination(7, True, False, False, True, model=TABLE),
]
KEPT = ("all", "part", "none")  # what of a batch is kept; the rest is replayed
STEPS = [
    *zip(PLAIN, itertools.cycle(KEPT), strict=False),
    *itertools.product(PLAIN[:3], KEPT),
    *itertools.product(VARIED, ("part",)),
]


def write_rows(folder: Path) -> None:
    """Ragged groups, doubled queries and passages, several positives, scores on some rows, prompts on some."""
    texts = random_texts(40, longest=10, seed=3)
    rows: list[dict[str, Any]] = [
        {"query": texts[0], "pos": [texts[1]], "neg": [texts[2], texts[3], texts[4]]},
        {"query": texts[5], "pos": [texts[6], texts[7]], "neg": []},
        {"query": texts[0], "pos": [texts[8]], "neg": [texts[1], texts[9]]},  # a negative that answers the first row
        {"query": texts[10], "pos": [texts[1]], "neg": [texts[11]], "prompt": "word6 word7 "},
        {"query": texts[12], "pos": [texts[13], texts[2]], "neg": [texts[8], texts[14], texts[15], texts[16]]},
        {"query": texts[17], "pos": [texts[18]], "neg": [texts[6], texts[19]]},
        {"query": texts[20], "pos": [texts[21]], "neg": []},
    ]
    for taught in (True, False):
        for number, row in enumerate(rows):
            if taught and number != 3:
                row["pos_scores"] = [2.0 - 0.1 * number] * len(row["pos"])
                row["neg_scores"] = [0.3 * number - 0.2 * place for place in range(len(row["neg"]))]
            else:
                row.pop("pos_scores", None)
                row.pop("neg_scores", None)
        (folder / f"rows-{taught}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def plan_of(combination: Combination, folder: Path) -> tuple[ExampleTable, BatchPlan]:
    table = ExampleTable.from_files([folder / f"rows-{combination.taught}.jsonl"])
    return table, Sampler(table, batch_size=combination.queries, group_size=4, seed=5).plan(0)


def objective_of(combination: Combination) -> ContrastiveObjective:
    usual = ContrastiveObjective(
        TEMPERATURE,
        combination.in_batch,
        WEIGHT,
        distillation=combination.distillation,
        two_way=combination.two_way,
        dims=combination.dims,
    )
    return CombinedObjective(**vars(usual), loss_weights=HEAD_LOSS_WEIGHTS) if combination.model == THREE else usual


def trainer(rank: int, world: int, folder: Path) -> list[Outcome]:
    """Loss and gradients of every one of :data:`STEPS`, by our code."""
    encoders = {name: Encoder.load(folder / name, pooling="mean", normalize=True) for name in (BERT, DENSE, STATIC)}
    encoders |= {name: Encoder.load(folder / name) for name in (MULTI, SPARSE, TABLE, THREE, WORDS_TOO)}
    asked = Encoder.load(folder / "guide", pooling="mean", normalize=True)
    outcomes = []
    for combination, keep in STEPS:
        encoder = encoders[combination.model].train()
        loss = add_gradients(encoder, asked, combination, keep, rank, world, folder)
        outcomes.append((loss, gradients(encoder)))
        encoder.zero_grad()
    return outcomes


def add_gradients(
    encoder: Encoder, asked: Encoder, combination: Combination, keep: str, rank: int, world: int, folder: Path
) -> float:
    """Add the gradient of a global batch, summed over ranks, to an encoder; the loss. ``asked`` is the guide."""
    table, plan = plan_of(combination, folder)
    batcher = Batcher(
        table=table,
        tokenize_queries=encoder.tokenize_queries,
        tokenize_passages=encoder.tokenize_passages,
        prompts=[Prompts(QUERY_PROMPT, "")],
        chunk_tokens=60,
        known_positives=KnownPositives(table) if combination.masked else None,
        tokenize_for_guide=(lambda q, p: asked.tokenize(q) + asked.tokenize(p)) if combination.guided else None,
        two_way=combination.two_way,
        rank=rank,
        world=world,
        cross_device=combination.cross_device,
    )
    batch = batcher(plan)
    gradcache.SCORES_AT_ONCE, gradcache.LEAST_QUERIES = (30, 1) if keep == "part" else (2**22, 256)
    losses = gradcache.accumulate_gradients(
        encoder,
        batch,
        objective_of(combination),
        keep_tokens={"all": 10**9, "part": batch.tokens // 2, "none": 0}[keep],
        seed=(1, 2),
        guide=Guide(asked, GUIDE_MARGIN) if combination.guided else None,
        sparsity=Sparsity(SPARSITY, combination.sparsity) if combination.sparsity else None,
    )
    sum_gradients(encoder.parameters())
    return float(losses.total)


# --- dropout: its masks follow from the texts -------------------------------------------------------------------------

DROPPING = ("kernels", "packed", "padded", "adapter")  # ways through the layers
SGD_STEPS, SGD_RATE = 10, 0.05


def write_dropping(folder: Path) -> None:
    """Models with every dropout that they have."""
    usual: dict[str, Any] = dict.fromkeys(DROPOUTS, 0.1)
    tiny_model(folder / "kernels", **NATIVE_SIZES | usual)
    tiny_model(folder / "adapter", **NATIVE_SIZES | usual)
    tiny_model(folder / "packed", "modernbert", **usual | {"mlp_dropout": 0.1})
    tiny_model(folder / "padded", "deberta-v2", **usual)


def dropping_encoder(kind: str, folder: Path) -> Encoder:
    encoder = Encoder.load(folder / kind, pooling="cls" if kind == "packed" else "mean", normalize=True)
    if kind == "adapter":
        add_lora(encoder.backbone, rank=2, alpha=4.0, dropout=0.2, first_layer=0, base="base", seed=0)
        for name, parameter in encoder.backbone.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return encoder.train()


def dropping_step(
    encoder: Encoder, folder: Path, step: int, chunk_tokens: int, keep_tokens: int, rank: int = 0, world: int = 1
) -> float:
    """Add the gradient of a step to the parameters, and return the loss."""
    combination = Combination(7, True, True, True, True, two_way=True)
    table = ExampleTable.from_files([folder / "rows-True.jsonl"])
    batcher = Batcher(
        table=table,
        tokenize_queries=encoder.tokenize_queries,
        tokenize_passages=encoder.tokenize_passages,
        prompts=[Prompts(QUERY_PROMPT, "")],
        chunk_tokens=chunk_tokens,
        known_positives=KnownPositives(table),
        two_way=True,
        rank=rank,
        world=world,
    )
    batch = batcher(Sampler(table, batch_size=7, group_size=4, seed=5).plan(step))
    losses = gradcache.accumulate_gradients(
        encoder, batch, objective_of(combination), keep_tokens=keep_tokens, seed=(1, step)
    )
    sum_gradients(encoder.parameters())
    return float(losses.total)


def dropping(rank: int, world: int, folder: Path) -> list[Outcome]:
    """Losses and gradients of :data:`DROPPING`, in chunks that differ with the number of ranks; then weights by SGD."""
    outcomes = []
    for kind in DROPPING:
        encoder = dropping_encoder(kind, folder)
        loss = dropping_step(encoder, folder, 0, 120 // world, 60, rank, world)
        outcomes.append((loss, gradients(encoder.backbone)))
    encoder = dropping_encoder("kernels", folder)
    for step in range(SGD_STEPS):
        loss = dropping_step(encoder, folder, step, 120 // world, 60, rank, world)
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.grad is not None:
                    parameter.sub_(SGD_RATE * parameter.grad)
        encoder.zero_grad()
    return [*outcomes, (loss, dict(encoder.backbone.state_dict()))]


def dropping_truth(kind: str, folder: Path) -> Outcome:
    """The plain step in float64: one process, one chunk, no kernels, nothing encoded twice."""
    encoder = dropping_encoder(kind, folder)
    encoder.double()
    return dropping_step(encoder, folder, 0, 10**9, 10**9), gradients(encoder.backbone)


def trainer_truth(combination: Combination, world: int, folder: Path) -> Outcome:
    """The same by definition."""
    table, plan = plan_of(combination, folder)
    model = Truth(folder / combination.model)
    rows = [table[int(row)] for row in plan.rows]
    texts, teacher, groups = [], [dict[int, float]() for _ in rows], [list[int]() for _ in rows]
    for passage, (i, index) in enumerate(zip(plan.passage_row.tolist(), plan.passage_index.tolist(), strict=True)):
        positive = bool(plan.is_positive[passage])
        scores = rows[i].positive_scores if positive else rows[i].negative_scores
        texts.append((rows[i].positives if positive else rows[i].negatives)[index])
        groups[i].append(passage)
        if rows[i].positive_scores is not None and rows[i].negative_scores is not None and scores is not None:
            teacher[i][passage] = scores[index]
    answers: dict[str, set[str]] = {}
    for number in range(len(table)):
        answers.setdefault(table[number].query, set()).update(table[number].positives)
    owner = {i: rank for rank in range(world) for i in range(len(rows))[share(len(rows), rank, world)]}
    answering = guide_finds(folder, [row.query for row in rows], texts, [group[0] for group in groups])
    candidates, askers, sharing = [], [], []
    for i, row in enumerate(rows):
        reach = [
            j for j in range(len(texts)) if combination.cross_device or owner[int(plan.passage_row[j])] == owner[i]
        ]
        seen = reach if combination.in_batch else groups[i]
        known = answers[row.query] if combination.masked else set()
        known = known | {texts[j] for j in range(len(texts)) if combination.guided and (i, j) in answering[0]}
        candidates.append([j for j in seen if j == groups[i][0] or texts[j] not in known])
        positive = texts[groups[i][0]]
        others = [j for j in range(len(rows)) if combination.cross_device or owner[j] == owner[i]]
        sharing.append(others)
        if combination.masked:
            others = [j for j in others if j == i or positive not in answers[rows[j].query]]
        askers.append([j for j in others if j == i or not (combination.guided and (i, j) in answering[1])])

    prompted = [(QUERY_PROMPT if row.prompt is None else row.prompt) + row.query for row in rows]
    queries, passages = model(prompted), model(texts, passages=True)
    added = [torch.zeros((), dtype=torch.float64)]  # to the loss of each query
    if combination.sparsity:
        sides = [
            ([queries[i] for i in near], [passages[j] for j, row in enumerate(plan.passage_row) if row in near])
            for near in sharing
        ]
        added = [SPARSITY * sparsity(*side, combination.sparsity) for side in sides]
    regularised = torch.stack(added).mean()
    told, margins = askers if combination.two_way else None, combination.distillation == "margin-mse"
    if combination.model == THREE:
        given: dict[str, Any] = {"groups": groups, "candidates": candidates, "teacher": teacher, "weight": WEIGHT}
        loss = partial(mean_loss, **given, askers=told, margins=margins)
        return outcome(model, loss_of_heads(queries, passages, candidates, loss) + regularised)
    losses = []
    for dim in combination.dims or (None,):
        is_cut = combination.model not in {SPARSE, TABLE, WORDS_TOO}
        asked, found = ([cut(text, dim) if is_cut else text for text in side] for side in (queries, passages))
        losses.append(mean_loss(asked, found, groups, candidates, teacher, WEIGHT, told, margins))
    return outcome(model, torch.stack(losses).mean() + regularised)


def guide_finds(
    folder: Path, queries: list[str], passages: list[str], positives: list[int]
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """What the guide finds as near as the positive: (query, passage), and (query, other query of its positive)."""
    model = AutoModel.from_pretrained(folder / "guide", dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder / "guide")
    with torch.no_grad():
        asked, found = (
            unit_vectors(model, tokenizer(texts, padding=True, return_tensors="pt")) for texts in (queries, passages)
        )
    near: tuple[set[tuple[int, int]], set[tuple[int, int]]] = (set(), set())
    for i, positive in enumerate(positives):
        least = float(asked[i] @ found[positive]) - GUIDE_MARGIN - 1e-6
        near[0].update((i, j) for j in range(len(found)) if float(asked[i] @ found[j]) >= least)
        near[1].update((i, j) for j in range(len(asked)) if float(asked[j] @ found[positive]) >= least)
    return near


# --- the seed's way: BiEncoderModel under DistributedDataParallel -----------------------------------------------------

SETTINGS = list(itertools.product(("in-batch", "in-batch, cross-device", "group"), (True, False)))
QUERIES, GROUP = 8, 3


def _inputs() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 20, (QUERIES * (1 + GROUP),), generator=draw).tolist()
    teacher = torch.randn(QUERIES, GROUP, generator=draw)
    return padded(lengths[:QUERIES], seed=1), padded(lengths[QUERIES:], seed=2), teacher


def ddp(rank: int, world: int, folder: Path) -> list[Outcome]:
    """Loss (of this rank) and averaged gradients of every one of :data:`SETTINGS`, by our code."""
    outcomes = []
    query, passage, teacher = _inputs()
    mine = slice(rank * QUERIES // world, (rank + 1) * QUERIES // world)
    groups = slice(mine.start * GROUP, mine.stop * GROUP)
    for negatives, taught in SETTINGS:
        model = BiEncoderModel(
            str(folder / "bert"),
            normlized=True,
            sentence_pooling_method="mean",
            negatives_cross_device=negatives != "in-batch",
            temperature=TEMPERATURE,
            use_inbatch_neg=negatives != "group",
        ).train()
        if taught:
            model.gradient_checkpointing_enable()
        parallel = DistributedDataParallel(model)
        output = parallel(
            {name: tensor[mine] for name, tensor in query.items()},
            {name: tensor[groups] for name, tensor in passage.items()},
            teacher[mine] if taught else None,
        )
        output.loss.backward()
        outcomes.append((float(output.loss.detach()), gradients(model.model)))
    return outcomes


def ddp_truth(negatives: str, taught: bool, world: int, folder: Path) -> Outcome:
    """The same by definition; the loss is the mean over ranks."""
    query, passage, teacher = _inputs()
    model = AutoModel.from_pretrained(folder / "bert", dtype=torch.float64)
    queries, passages = unit_vectors(model, query), unit_vectors(model, passage)
    groups = [list(range(i * GROUP, (i + 1) * GROUP)) for i in range(QUERIES)]
    each = QUERIES // world if negatives == "in-batch" else QUERIES
    blocks = [range(i // each * each * GROUP, (i // each + 1) * each * GROUP) for i in range(QUERIES)]
    candidates = groups if negatives == "group" else [list(block) for block in blocks]
    scores = [dict(zip(groups[i], teacher[i].tolist(), strict=True)) if taught else {} for i in range(QUERIES)]
    return outcome(model, mean_loss(queries, passages, groups, candidates, scores, 1.0))
