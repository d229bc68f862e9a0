"""A vector for each token: the scores, losses and gradients of sentence-transformers' ``MultiVectorEncoder``."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import resumed_and_whole, small_run
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_scores
from tiny import WORDS, gradient_errors, gradients, random_texts, tiny_model
from transformers import AutoTokenizer

from biencoder import Encoder, train
from biencoder.errors import UserError
from biencoder.model.heads.multi_vector import MultiVectorHead
from biencoder.model.merging.merge import merge
from biencoder.model.packing import chunks, pack
from biencoder.model.representations.ragged import TokenVectors
from biencoder.model.representations.representation import in_order
from biencoder.objective.contrastive import ContrastiveObjective
from biencoder.objective.labels import Labels

QUERIES, PASSAGES = random_texts(8, longest=7, seed=5), random_texts(8, longest=20, seed=6)
CANCELLING = 0.1  # of the largest gradient: smaller ones are the rest of a sum
SKIPPED = ["word3", "word14", "word159", "word26"]


def with_tokens(folder: Path, *, expansion: int | None = None, skipped: Sequence[str] = ()) -> Path:
    """A model that sentence-transformers has made from a transformer, and saved."""
    base = tiny_model(folder.with_name(f"{folder.name}-base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.mask_token = "word9"
    tokenizer.save_pretrained(base)
    torch.manual_seed(1)
    peer = MultiVectorEncoder(str(base), device="cpu", prompts={"query": "word7 ", "document": "word8 "})
    if expansion is not None:
        peer[0].query_expansion = {"strategy": "fixed", "attend": True, "length": expansion}
    peer[2].skiplist_words = list(skipped)
    peer.similarity_fn_name = "meanmaxsim"
    peer.save_pretrained(str(folder))
    return folder


def own_scores(encoder: Encoder) -> np.ndarray:
    asked, found = encoder.represent_queries(QUERIES), encoder.represent_passages(PASSAGES)
    assert isinstance(asked, TokenVectors)
    assert isinstance(found, TokenVectors)
    with torch.no_grad():
        return asked.padded().scores(found.padded()).numpy()


def their_scores(folder: Path) -> np.ndarray:
    peer = MultiVectorEncoder(str(folder), device="cpu")
    scores: np.ndarray = peer.similarity(peer.encode_query(QUERIES), peer.encode_document(PASSAGES)).numpy()
    return scores


@pytest.mark.parametrize("expansion", [None, 12])
@pytest.mark.parametrize("skipped", [[], SKIPPED])
def test_scores_are_those_of_sentence_transformers(tmp_path: Path, expansion: int | None, skipped: list[str]) -> None:
    folder = with_tokens(tmp_path / "model", expansion=expansion, skipped=skipped)
    encoder = Encoder.load(folder)
    assert encoder.settings.multi
    assert encoder.dim == 128
    np.testing.assert_allclose(own_scores(encoder), their_scores(folder), atol=1e-5)
    encoder.save(tmp_path / "saved")
    np.testing.assert_array_equal(own_scores(Encoder.load(tmp_path / "saved")), own_scores(encoder))
    np.testing.assert_allclose(their_scores(tmp_path / "saved"), own_scores(encoder), atol=1e-5)
    assert Encoder.load(tmp_path / "saved").settings == encoder.settings


def test_what_is_left_out_changes_the_scores(tmp_path: Path) -> None:
    folders = [
        with_tokens(tmp_path / "plain"),
        with_tokens(tmp_path / "skips", skipped=SKIPPED),
        with_tokens(tmp_path / "expands", expansion=12),
    ]
    scores = [own_scores(Encoder.load(folder)) for folder in folders]
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    assert np.abs(scores[0] - scores[2]).max() > 1e-3


def test_loss_and_gradients_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "model", skipped=SKIPPED)
    encoder, peer = Encoder.load(folder), MultiVectorEncoder(str(folder), device="cpu").eval()
    tokens = encoder.tokenize_queries(QUERIES, "word7 ") + encoder.tokenize_passages(PASSAGES, "word8 ")
    parts = list(chunks(tokens, 60))
    assert len(parts) > 2
    texts = in_order([encoder(part.batch) for part in parts], [part.index for part in parts])
    labels = Labels.of_groups(len(QUERIES), 1, texts.device)
    loss = ContrastiveObjective(0.05)(texts[: len(QUERIES)], texts[len(QUERIES) :], labels).total.mean()
    loss.backward()

    theirs = MultiVectorMultipleNegativesRankingLoss(peer, scale=20.0, similarity_fct=mean_colbert_scores)
    sides = (("query", "word7 ", QUERIES), ("document", "word8 ", PASSAGES))
    prompted = [(task, [prompt + text for text in side]) for task, prompt, side in sides]
    features = [peer.preprocess(texts, task=task) | {"task": task} for task, texts in prompted]
    wanted = theirs(features)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    of_peer = {name.split("auto_model.")[-1].split("model.")[-1]: p.grad for name, p in peer.named_parameters()}
    found = {name.removeprefix("backbone."): gradient for name, gradient in gradients(encoder).items()}
    found["1.linear.weight"] = found.pop("head.layers.0.linear.weight")
    assert len(found) > 20
    assert max(gradient_errors(found, {name: of_peer[name] for name in found}, CANCELLING)) < 1e-5


def test_a_packed_batch_gives_what_single_texts_give(tmp_path: Path) -> None:
    encoder = Encoder.load(with_tokens(tmp_path / "model", skipped=SKIPPED))
    tokens = encoder.tokenize_passages(PASSAGES)
    whole = encoder(pack(tokens))
    for number, text in enumerate(tokens):
        alone = encoder(pack([text])).tokens_NLD
        torch.testing.assert_close(whole.tokens_NLD[number : number + 1, : alone.shape[1]], alone, atol=1e-6, rtol=1e-5)
        left_out = np.isin(text, ~np.array(encoder.tokenizer.convert_tokens_to_ids(SKIPPED)))
        assert torch.equal(alone[0].any(dim=1), torch.from_numpy(~left_out))


def test_fewer_dimensions(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "model")
    whole, short = Encoder.load(folder), Encoder.load(folder, dim=5)
    assert short.dim == 5
    cut = whole.cut(whole.represent_passages(PASSAGES), 5)
    found = short.represent_passages(PASSAGES)
    assert isinstance(cut, TokenVectors)
    assert isinstance(found, TokenVectors)
    np.testing.assert_allclose(cut.vectors, found.vectors, atol=1e-6)
    assert whole.encode(PASSAGES).shape == (8, 128)


def test_a_merge_averages_the_layer(tmp_path: Path) -> None:
    folders = [with_tokens(tmp_path / name) for name in ("one", "other")]
    weights = Encoder.load(folders[0]).head.state_dict()
    paths = [str(folder) for folder in folders]
    merge(paths, (0.5, 0.5), tmp_path / "merged", spherical=False, trust_remote_code=False)
    merged = Encoder.load(tmp_path / "merged")
    assert isinstance(merged.head, MultiVectorHead)
    torch.testing.assert_close(merged.head.state_dict(), weights)
    base = str(tmp_path / "one-base")
    with pytest.raises(UserError, match="only models of one kind can be merged"):
        merge([paths[0], base], (0.5, 0.5), tmp_path / "no", spherical=False, trust_remote_code=False)


def test_a_run_makes_a_model_that_sentence_transformers_loads(tmp_path: Path) -> None:
    config = small_run(tmp_path, heads="multi", add_dense=12, dims=(6,), keep_base=0.25, cluster_size=4, two_way=True)
    result = train(config)
    assert result is not None
    assert result.after.metrics["ndcg@10"] > result.before.metrics["ndcg@10"]
    tuned = Encoder.load(tmp_path / "out")
    assert (tuned.dim, tuned.settings.skipped) == (12, ())  # the tokenizer knows no punctuation
    np.testing.assert_allclose(own_scores(tuned), their_scores(tmp_path / "out"), atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "a vector of 12 dimensions for each token" in card
    assert "MultiVectorEncoder" in card
    assert "models.ColBERT" in card
    further: dict[str, Any] = {
        "model": str(tmp_path / "out"),
        "output_dir": tmp_path / "again",
        "add_dense": None,
        "heads": None,
    }
    assert train(replace(config, **further)) is not None
    assert Encoder.load(tmp_path / "again").settings.multi


def pylate_says(folder: Path, **changes: Any) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_folder_is_one_that_pylate_loads(tmp_path: Path) -> None:
    """PyLate 1.6 loads exactly these keys; it cannot be installed beside our transformers, so this names them."""
    encoder = Encoder.load(with_tokens(tmp_path / "tokens", expansion=9, skipped=[*SKIPPED, "!"]))
    encoder.save(tmp_path / "own")
    modules = json.loads((tmp_path / "own" / "modules.json").read_text())
    assert [each["type"] for each in modules] == [f"sentence_transformers.models.{k}" for k in ("Transformer", "Dense")]
    assert json.loads((tmp_path / "own" / "sentence_bert_config.json").read_text()).keys() == {
        "max_seq_length",
        "do_lower_case",
    }
    said = json.loads((tmp_path / "own" / "config_sentence_transformers.json").read_text())
    wanted = {
        "model_type": "ColBERT",
        "query_prefix": "",
        "document_prefix": "",
        "query_length": 9,
        "document_length": encoder.max_length,
        "do_query_expansion": True,
        "attend_to_expansion_tokens": True,
        "skiplist_words": SKIPPED,  # "!" is no token, and PyLate would skip unknown words in its place
        "similarity_fn_name": "meanmaxsim",
    }
    assert wanted.items() <= said.items()
    again = Encoder.load(tmp_path / "own")
    assert (again.settings.query_expansion, again.settings.skipped) == (9, tuple(SKIPPED))
    np.testing.assert_array_equal(own_scores(again), own_scores(encoder))


def test_what_pylate_writes_is_read_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    Encoder.load(with_tokens(tmp_path / "tokens")).save(folder)
    pylate_says(folder, query_prefix="[Q] ", document_prefix="[D] ", prompts={"query": "", "document": ""})
    read = Encoder.load(folder).settings
    assert (read.query_prompt, read.passage_prompt, read.multi) == ("[Q] ", "[D] ", True)
    pylate_says(folder, do_query_expansion=True, attend_to_expansion_tokens=False)
    with pytest.raises(UserError, match="tokens that the model does not attend to: biencoder fills queries"):
        Encoder.load(folder)
    pylate_says(folder, do_query_expansion=False, query_prefix=3)
    with pytest.raises(UserError, match="query_prefix and document_prefix must be texts"):
        Encoder.load(folder)
    pylate_says(folder, query_prefix="")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(UserError, match="a ColBERT model needs a Transformer and Dense modules alone"):
        Encoder.load(folder)


def test_long_queries_are_cut_to_the_length_that_short_ones_are_filled_to(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "tokens", expansion=9)
    long = random_texts(4, longest=60, seed=7)
    found = Encoder.load(folder).represent_queries(long)
    theirs = MultiVectorEncoder(str(folder), device="cpu").encode_query(long)
    assert isinstance(found, TokenVectors)
    assert np.diff(found.starts).tolist() == [9] * 4
    np.testing.assert_allclose(found.vectors, np.concatenate([np.asarray(each) for each in theirs]), atol=1e-5)


def test_a_killed_run_ends_in_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_run(tmp_path, dropout=True, heads="multi", add_dense=12, save_steps=3)
    resumed, uninterrupted = resumed_and_whole(config, monkeypatch)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "--heads multi with --pooling mean: tokens are not pooled"),
        ({"normalize": False}, "--heads multi with --no-normalize"),
        ({"query_expansion": 8}, "--query-expansion 8: the tokenizer of .* has no mask token"),
        ({"heads": None, "query_expansion": 8}, "--query-expansion 8 needs --heads multi"),
        ({"dims": (24,), "add_dense": 12}, "--dims 24: --add-dense 12 makes 12 dimensions"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(small_run(tmp_path, **{"heads": "multi"} | options))


def test_a_model_with_a_vector_a_token_is_not_pooled(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "tokens")
    with pytest.raises(UserError, match=r"--heads dense: .* has the head multi, which is not replaced"):
        train(small_run(tmp_path, model=str(folder), heads="dense"))
    with pytest.raises(UserError, match="--add-dense 4: the model makes a vector for each token, and has its layer"):
        train(small_run(tmp_path, model=str(folder), add_dense=4))
    with pytest.raises(UserError, match="--query-expansion 40 is more than --query-max-len 16"):
        train(small_run(tmp_path, model=str(folder), query_expansion=40))
    with pytest.raises(UserError, match="--pooling cls: the model makes something of each token, and pools nothing"):
        Encoder.load(folder, pooling="cls")


Change = tuple[str, dict[str, Any]]
DAMAGE: dict[str, Change] = {
    r"skiplist_words must be a list of texts": ("2_MultiVectorMask/config.json", {"skiplist_words": [3]}),
    r"leaves out words of documents only": (
        "2_MultiVectorMask/config.json",
        {"skiplist_words": [WORDS[0]], "skiplist_tasks": ["query", "document"]},
    ),
    r"fills queries to a fixed length": ("sentence_bert_config.json", {"query_expansion": {"strategy": "double"}}),
    r"the layer goes from sentence_embedding": ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, message: str) -> None:
    folder = with_tokens(tmp_path / "model")
    name, change = DAMAGE[message]
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        Encoder.load(folder)


def test_a_model_without_length_1_is_refused(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    with pytest.raises(UserError, match="no multi-vector model without a Normalize module"):
        Encoder.load(folder)
