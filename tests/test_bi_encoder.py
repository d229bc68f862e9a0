"""The seed contract: BiEncoderModel against its formulas on plain transformers, and inside of transformers' Trainer."""

import inspect
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WORDS, gradient_errors, gradients, pool, relative_error, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from biencoder import BiEncoderModel
from biencoder.bi_encoder import EncoderOutput

QUERIES = ["what causes asthma?", "how to sort a list in python", "capital of Australia"]
PASSAGES = [  # shuffled, so that the loss is far from zero, where its relative error means nothing
    "Canberra is the capital city of Australia.",
    "Asthma is brought about by a mixture of inherited and environmental factors.",
    "Bronchitis is an inflammation of the large airways, often with a cough that lasts for several weeks.",
    "sorted(iterable) returns a new list; list.sort() sorts in place.",
    "Sydney is the largest city of Australia, on its east coast, and was founded in 1788.",
    "Lists are mutable.",
]
TEACHER = torch.tensor([[3.0, 1.0], [2.5, 2.0], [0.5, 0.0]])
Batch = tuple[dict[str, Tensor], dict[str, Tensor]]


def tokenized(folder: str | Path, side: str = "right") -> Batch:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)

    def one(texts: list[str]) -> dict[str, Tensor]:
        features: BatchEncoding = tokenizer(texts, padding=True, return_tensors="pt")
        return {name: features[name] for name in ("input_ids", "attention_mask")}

    return one(QUERIES), one(PASSAGES)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def by_formula(
    model: Any, batch: Batch, pooling: str, normalize: bool, temperature: float, in_batch: bool, teacher: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, scores and both sides' vectors, from the formulas of the contract on transformers' own model."""
    sides = []
    for features in batch:
        vectors = pool(model(**features).last_hidden_state, features["attention_mask"], pooling)
        sides.append(vectors / vectors.norm(dim=-1, keepdim=True) if normalize else vectors)
    queries, passages = sides
    group_size = len(passages) // len(queries)
    losses, rows = [], []
    for i, query in enumerate(queries):
        group = range(i * group_size, (i + 1) * group_size)
        candidates = list(range(len(passages)) if in_batch else group)
        row = torch.stack([query @ passages[j] for j in candidates]) / temperature
        losses.append(row.logsumexp(0) - row[candidates.index(i * group_size)])
        if teacher is not None:
            student = torch.stack([row[candidates.index(j)] for j in group]).log_softmax(0)
            losses[-1] = losses[-1] - (teacher[i].softmax(0) * student).sum()
        rows.append(row)
    return torch.stack(losses).mean(), torch.stack(rows), queries, passages


@pytest.mark.parametrize(
    ("pooling", "normalize", "in_batch"), list(itertools.product(("cls", "mean"), (True, False), (True, False)))
)
def test_loss_scores_vectors_and_gradients_follow_the_formulas(
    minilm: str, pooling: str, normalize: bool, in_batch: bool
) -> None:
    temperature = 0.02 if normalize else 1.0
    model = BiEncoderModel(minilm, normalize, pooling, temperature=temperature, use_inbatch_neg=in_batch)
    reference = AutoModel.from_pretrained(minilm, dtype=torch.float64)
    batch = tokenized(minilm)
    worst = torch.zeros(3)
    for teacher in (None, TEACHER):
        model.zero_grad()
        reference.zero_grad()
        output = without_dropout(model).train()(*batch, teacher_score=teacher)
        wanted = by_formula(
            without_dropout(reference).train(), batch, pooling, normalize, temperature, in_batch, teacher
        )
        output.loss.backward()
        wanted[0].backward()
        got = (output.loss, output.scores, output.q_reps, output.p_reps)
        values = max(relative_error(a, b) for a, b in zip(got, wanted, strict=True))
        trained = gradients(model.model)
        plain = {name: gradient for name, gradient in gradients(reference).items() if name in trained}
        worst = worst.maximum(torch.tensor([values, *gradient_errors(trained, plain)]))
    print(f"{pooling} {normalize=} {in_batch=}: values {worst[0]:.1e}, gradients {worst[1]:.1e}, all {worst[2]:.1e}")
    assert output.scores.shape == ((3, 6) if in_batch else (3, 2))
    assert worst[0] <= 1e-5
    assert worst[1] <= 1e-4


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("bert")))


def test_the_signature_is_the_seeds() -> None:
    parameters = list(inspect.signature(BiEncoderModel.__init__).parameters.values())[1:]
    assert [(p.name, p.default) for p in parameters] == [
        ("model_name", None),
        ("normlized", False),
        ("sentence_pooling_method", "cls"),
        ("negatives_cross_device", False),
        ("temperature", 1.0),
        ("use_inbatch_neg", True),
    ]
    assert list(inspect.signature(BiEncoderModel.forward).parameters)[1:] == ["query", "passage", "teacher_score"]


def test_the_designs_own_example(minilm: str, caplog: pytest.LogCaptureFixture) -> None:
    query_inputs, passage_inputs = tokenized(minilm)
    with caplog.at_level(logging.WARNING):
        model = BiEncoderModel(model_name=minilm, normlized=True, sentence_pooling_method="cls",
                               negatives_cross_device=True, temperature=0.02, use_inbatch_neg=True)  # fmt: skip
    assert "negatives_cross_device" in caplog.text
    outputs = model.train()(query=query_inputs, passage=passage_inputs)
    outputs.loss.backward()
    with torch.no_grad():
        q_reps, p_reps = model.encode(query_inputs), model.encode(passage_inputs)
    assert isinstance(outputs, EncoderOutput)
    assert q_reps is not None
    assert p_reps is not None
    assert q_reps.shape == (3, 384)
    assert p_reps.shape == (6, 384)
    assert q_reps.is_contiguous()
    assert (q_reps.norm(dim=-1) - 1).abs().max() < 1e-6
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.config is model.model.config


@pytest.mark.parametrize("normalize", [True, False])
def test_eval_mode_gives_the_plain_similarity_and_no_loss(minilm: str, normalize: bool) -> None:
    model = BiEncoderModel(minilm, normalize, temperature=0.02).eval()
    batch = tokenized(minilm)
    output = model(*batch, teacher_score=TEACHER)
    assert output.loss is None
    _, scores, queries, passages = by_formula(
        AutoModel.from_pretrained(minilm).eval(), batch, "cls", normalize, 1.0, True, None
    )
    for got, want in ((output.scores, scores), (output.q_reps, queries), (output.p_reps, passages)):
        assert relative_error(got, want) <= 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_a_missing_side_has_no_vectors_and_no_loss(bert: str, training: bool) -> None:
    model = BiEncoderModel(bert).train(training)
    query, passage = tokenized(bert)
    for output, given, missing in (
        (model(query=query), "q_reps", "p_reps"),
        (model(passage=passage), "p_reps", "q_reps"),
    ):
        assert output[given] is not None
        assert getattr(output, missing) is None
        assert output.loss is None
        assert output.scores is None
    assert model.encode(None) is None
    assert model().to_tuple() == ()


def test_left_padding_gives_the_vectors_of_right_padding(minilm: str) -> None:
    for pooling in ("cls", "mean", "last"):
        model = BiEncoderModel(minilm, True, pooling, temperature=0.1).eval()
        right, left = (model(*tokenized(minilm, side)) for side in ("right", "left"))
        assert relative_error(left.p_reps, right.p_reps) <= 1e-6
        assert relative_error(left.q_reps, right.q_reps) <= 1e-6


def test_flat_and_square_teacher_scores_are_the_same(bert: str) -> None:
    model = BiEncoderModel(bert, True, temperature=0.05).train()
    batch = tokenized(bert)
    square, flat, none = (model(*batch, teacher_score=t).loss for t in (TEACHER, TEACHER.flatten(), None))
    assert torch.equal(square, flat)
    assert square > none
    with pytest.raises(ValueError, match="teacher_score has 5 values for 3 x 2"):
        model(*batch, teacher_score=torch.zeros(5))


def test_temperature_rules(bert: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert BiEncoderModel(bert, normlized=False, temperature=0.02).temperature == 1.0
    assert "temperature is 1.0" in caplog.text
    assert BiEncoderModel(bert, normlized=True, temperature=0.5).temperature == 0.5
    for temperature, reason in ((0.51, "nearly equal"), (0.0, "must be positive"), (-1.0, "must be positive")):
        with pytest.raises(ValueError, match=reason):
            BiEncoderModel(bert, normlized=True, temperature=temperature)


def test_arguments_that_cannot_be(bert: str) -> None:
    with pytest.raises(ValueError, match="model_name is missing"):
        BiEncoderModel()
    with pytest.raises(ValueError, match="'max': known are cls, mean, last"):
        BiEncoderModel(bert, sentence_pooling_method="max")
    model = BiEncoderModel(bert).train()
    query, passage = tokenized(bert)
    with pytest.raises(ValueError, match="5 passages do not make equal groups for 3 queries"):
        model(query, {name: tensor[:5] for name, tensor in passage.items()})
    query["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="row 1 of attention_mask has no real token"):
        model.encode(query)


def test_similarity_stays_float32_under_autocast(bert: str) -> None:
    model = BiEncoderModel(bert, True, temperature=0.02)
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            output = model.train(training)(*tokenized(bert))
        want = output.q_reps @ output.p_reps.T / (0.02 if training else 1)
        assert output.scores.dtype == torch.float32
        assert torch.equal(output.scores, want)


def test_gradient_checkpointing_changes_nothing(bert: str) -> None:
    losses, grads = [], []
    for checkpointing in (False, True):
        model = BiEncoderModel(bert, True, "mean", temperature=0.05).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.is_gradient_checkpointing
        losses.append(model(*tokenized(bert)).loss)
        losses[-1].backward()
        grads.append(gradients(model))
    assert torch.equal(*losses)
    assert gradient_errors(grads[1], grads[0])[0] <= 1e-6


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False), ("last", True)])
def test_a_saved_model_is_the_same_in_transformers_and_sentence_transformers(
    minilm: str, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    model = BiEncoderModel(minilm, normalize, pooling, temperature=0.1).eval()
    model.save(str(tmp_path))
    want = model.encode(tokenized(minilm)[1])
    got = torch.from_numpy(SentenceTransformer(str(tmp_path), device="cpu").encode(PASSAGES))
    assert want is not None
    assert relative_error(got, want) <= 1e-5
    plain, before = AutoModel.from_pretrained(tmp_path).state_dict(), model.model.state_dict()
    assert plain.keys() == before.keys()
    assert all(torch.equal(plain[name], before[name]) for name in plain)


def test_it_trains_inside_of_a_plain_trainer(bert: str, tmp_path: Path) -> None:
    """Twenty steps on pairs that share a word: each query must find the passage with its word."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    from transformers import Trainer, TrainingArguments

    tokenizer = tiny_tokenizer()

    def collate(words: list[str]) -> dict[str, Any]:
        def features(texts: list[str]) -> dict[str, Tensor]:
            return dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))

        return {
            "query": features(words),
            "passage": features(
                [text for w in words for text in (f"{w} {WORDS[0]} {WORDS[1]}", f"{WORDS[0]} {WORDS[2]}")]
            ),
        }

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=True,
    )
    trainer = Trainer(
        BiEncoderModel(bert, True, "mean", temperature=0.05),
        arguments,
        collate,
        train_dataset=list(WORDS),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    print(f"Trainer: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    assert len(losses) == 20
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
