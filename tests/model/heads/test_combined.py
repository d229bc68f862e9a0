"""Several heads on one pass: parts and their sum, files, training, retrieval, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mining import mined_rows
from numpy.typing import NDArray
from runs import resumed_and_whole, small_run
from tiny import random_texts, tiny_model

from biencoder import Encoder, train
from biencoder.commands.data import score as score_command
from biencoder.commands.encode import run as run_encode
from biencoder.commands.evaluate import run as run_evaluate
from biencoder.config import EncodeConfig, EvaluateConfig, ScoreConfig
from biencoder.errors import UserError
from biencoder.model.distilling import distill
from biencoder.model.merging.merge import merge
from biencoder.model.new_heads.combined import make_combined
from biencoder.model.packing import pack
from biencoder.model.representations.combined import Combined
from biencoder.model.representations.combined_rows import CombinedVectors
from biencoder.model.representations.ragged import Ragged, Vectors
from biencoder.model.representations.representation import concatenate, in_order
from biencoder.retrieval import search
from biencoder.retrieval.search_texts import search_texts

THREE = "dense,sparse,multi"
PASSAGES = random_texts(40, longest=20, seed=2)
QUERIES = [" ".join(text.split()[:3]) for text in PASSAGES[:12]]


def with_heads(folder: Path, heads: str = THREE) -> Path:
    encoder = Encoder.load(tiny_model(folder.with_name(f"{folder.name}-base")))
    make_combined(encoder, heads, 16 if "multi" in heads else None, QUERIES, PASSAGES[:12])
    encoder.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("combined")
    with_heads(folder / "model")
    (folder / "passages.txt").write_text("\n".join(PASSAGES) + "\n")
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"p{i}", "text": text} for i, text in enumerate(PASSAGES)]
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    qrels = "".join(f"q{i}\tp{i}\t1\n" for i in range(len(QUERIES)))
    (data / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder / "model")


def scores(queries: Vectors, passages: Vectors) -> NDArray[np.float32]:
    if isinstance(queries, Ragged):
        assert isinstance(passages, Ragged)
        return queries.scores(passages)
    assert isinstance(passages, np.ndarray)
    found: NDArray[np.float32] = queries @ passages.T
    return found


def own_scores(encoder: Encoder) -> NDArray[np.float32]:
    return scores(encoder.represent_queries(QUERIES), encoder.represent_passages(PASSAGES))


@pytest.mark.parametrize("heads", [THREE, "dense,sparse", "dense,multi"])
def test_the_similarity_is_the_weighted_sum_of_the_heads(tmp_path: Path, heads: str) -> None:
    folder = with_heads(tmp_path / "model", heads)
    weights = {"dense": 1.0, "sparse": 0.3, "multi": 1.0}
    parts = {head: own_scores(Encoder.load(folder, head=head)) for head in heads.split(",")}
    together = sum(weights[head] * found for head, found in parts.items())
    np.testing.assert_allclose(own_scores(Encoder.load(folder)), together, atol=1e-5)
    one, two, *_ = parts.values()
    assert not np.allclose(one, two, atol=0.01)


def test_a_head_alone_makes_what_it_makes_among_others(folder: Path, encoder: Encoder) -> None:
    found = encoder.represent_passages(PASSAGES)
    assert isinstance(found, CombinedVectors)
    whole = found.padded()
    assert whole.dense is not None
    assert whole.multi is not None
    alone = Encoder.load(folder / "model", head="dense").encode(PASSAGES)
    np.testing.assert_allclose(whole.dense.vectors_ND, alone, atol=1e-6)
    tokens = Encoder.load(folder / "model", head="multi").represent_passages(PASSAGES)
    assert isinstance(tokens, Ragged)
    lengths = np.array([len(each) for each in encoder.tokenize(PASSAGES)])
    assert (np.diff(tokens.starts) == lengths - 1).all()  # the first token has none
    np.testing.assert_allclose(whole.multi.tokens_NLD[whole.multi.present], tokens.vectors, atol=1e-6)


def test_a_packed_batch_gives_what_single_texts_give(encoder: Encoder) -> None:
    tokens = encoder.tokenize(PASSAGES[:6])
    with torch.no_grad():
        together = encoder(pack(tokens))
        alone = concatenate([encoder(pack([each])) for each in tokens])
    assert isinstance(together, Combined)
    for mine, theirs in zip(together.tensors, alone.in_places(together.places).tensors, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_places_order_and_gradients(encoder: Encoder) -> None:
    tokens = encoder.tokenize(PASSAGES[:4])
    whole = encoder(pack(tokens))
    parts = [whole[torch.tensor([3, 1])], whole[torch.tensor([0, 2])].in_places((30, 40))]
    joined = in_order(parts, [torch.tensor([3, 1]), torch.tensor([0, 2])])
    assert joined.places == (30, 40)
    torch.testing.assert_close(joined.scores(whole), whole.scores(whole))
    leaves = whole.as_leaves()
    leaves.pair_scores(leaves).sum().backward()
    assert all(tensor.any() for tensor in leaves.gradient().tensors if tensor.is_floating_point())
    doubled = leaves.gradient().plus(leaves.gradient().in_places((30, 40)))
    torch.testing.assert_close(doubled.tensors[0], 2 * leaves.gradient().tensors[0])
    with pytest.raises(NotImplementedError):
        whole.cut(4, normalize=True)


def test_files_as_bge_m3_has_them(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    """BAAI/bge-m3 has no file that says how the heads work together, and pickles of their layers."""
    encoder.save(tmp_path / "m3")
    (tmp_path / "m3" / "biencoder_heads.json").unlink()
    for name in ("sparse_linear", "colbert_linear"):
        part = {"sparse_linear": "sparse", "colbert_linear": "multi"}[name]
        states = Encoder.load(folder / "model", head=part).head.layer_states()
        layer = {key.removeprefix("linear."): weight for key, weight in states[0].items()}
        torch.save(layer, tmp_path / "m3" / f"{name}.pt")
        (tmp_path / "m3" / f"{name}.safetensors").unlink()
    loaded = Encoder.load(tmp_path / "m3")
    assert (loaded.kind, loaded.settings.weights) == (THREE, (1.0, 0.3, 1.0))
    np.testing.assert_array_equal(own_scores(loaded), own_scores(encoder))
    loaded.save(tmp_path / "again")
    assert {path.suffix for path in (tmp_path / "again").iterdir()} == {"", ".json", ".safetensors"}
    assert loaded.weights_fingerprint == Encoder.load(tmp_path / "again").weights_fingerprint


def test_a_model_saved_over_another_leaves_no_head_behind(folder: Path, tmp_path: Path) -> None:
    with_heads(tmp_path / "model")
    Encoder.load(folder / "model", head="dense").save(tmp_path / "model")
    assert Encoder.load(tmp_path / "model").kind == "dense"
    assert not list(tmp_path.glob("model/*_linear*"))


DAMAGE: dict[str, Any] = {
    "heads must be a list of dense, sparse, multi": {"heads": ["multi", "dense"]},
    "heads must be a list": {"heads": "dense"},
    "weights must be a list of one number above 0": {"weights": [1, 1]},
    "one number above 0 for each head": {"weights": [1, -1, 1]},
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_files_are_refused(tmp_path: Path, message: str) -> None:
    path = with_heads(tmp_path / "model") / "biencoder_heads.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | DAMAGE[message]))
    with pytest.raises(UserError, match=message):
        Encoder.load(path.parent)


def test_missing_and_foreign_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    model = with_heads(tmp_path / "model")
    sparse, tokens = model / "sparse_linear.safetensors", model / "colbert_linear.safetensors"
    content = sparse.read_bytes()
    sparse.write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"sparse_linear\.safetensors: is damaged or cut off"):
        Encoder.load(model)
    sparse.write_bytes(tokens.read_bytes())
    with pytest.raises(UserError, match=r"cannot be loaded \(Error\(s\) in loading state_dict for SparseHead"):
        Encoder.load(model)
    sparse.unlink()
    with pytest.raises(UserError, match=r"sparse_linear\.safetensors: missing, though biencoder_heads\.json names"):
        Encoder.load(model)
    with pytest.raises(UserError, match=r"--head static: .* has no such head; it has dense,sparse,multi"):
        Encoder.load(folder / "model", head="static")
    with pytest.raises(UserError, match=r"--dim 8: .* has several heads \(dense,sparse,multi\); name one with --head"):
        Encoder.load(folder / "model", dim=8)
    assert Encoder.load(folder / "model", head="multi", dim=8).dim == 8


def test_a_run_trains_all_heads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mined: dict[str, Any] = {"mine_negatives": 1, "group_size": 3}
    config = small_run(tmp_path, heads=THREE, add_dense=12, keep_base=0.25, cluster_size=4, **mined)
    result = train(config)
    assert result is not None
    assert result.after.metrics["ndcg@10, multi"] > result.before.metrics["ndcg@10, multi"]
    views = ["dense", "sparse", "multi", "dense + sparse", "dense + multi", "sparse + multi"]
    assert [name for name in result.after.metrics if "," in name] == [f"ndcg@10, {view}" for view in views]
    tuned = Encoder.load(tmp_path / "out")
    assert (tuned.kind, tuned.settings.weights) == (THREE, (1.0, 0.3, 1.0))
    assert "heads dense + sparse + multi, summed by 1, 0.3, 1" in capfd.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 dense + 0.3 sparse + 1 multi" in card
    assert "`SentenceTransformer(folder)`, which loads the head dense alone" in card
    further: dict[str, Any] = {"model": str(tmp_path / "out"), "add_dense": None, "heads": None, "mine_negatives": 0}
    again = replace(config, **further, head_weights=(1.0, 0.5, 2.0), output_dir=tmp_path / "again")
    assert train(again) is not None
    assert Encoder.load(tmp_path / "again").settings.weights == (1.0, 0.5, 2.0)
    alone = replace(config, **further | {"heads": "dense"}, output_dir=tmp_path / "alone")
    assert train(alone) is not None
    assert Encoder.load(tmp_path / "alone").kind == "dense"


def test_a_killed_run_ends_in_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_run(tmp_path, dropout=True, heads=THREE, add_dense=12, save_steps=3)
    resumed, uninterrupted = resumed_and_whole(config, monkeypatch)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": False}, "--heads dense,sparse,multi with --no-normalize: the heads are compared by cosines"),
        ({"dims": (8,)}, "--heads dense,sparse,multi with --dims: heads of several kinds"),
        ({"heads": "dense,sparse", "add_dense": 8}, "--heads dense,sparse with --add-dense"),
        ({"head_weights": (1.0, 1.0)}, "--head-weights has 2 numbers, and there are 3 heads: dense,sparse,multi"),
        ({"heads": "dense", "head_loss_weights": (1.0,)}, "--head-loss-weights needs several heads"),
        ({"query_expansion": 8}, "--query-expansion 8 needs --heads multi"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(small_run(tmp_path, **{"heads": THREE} | options))


def test_heads_that_a_model_cannot_be_given(folder: Path, tmp_path: Path) -> None:
    run = small_run(tmp_path, model=str(folder / "model"), heads="dense,sparse")
    with pytest.raises(UserError, match=r"--heads dense,sparse: .* has the head dense,sparse,multi, which is not"):
        train(run)
    with pytest.raises(UserError, match=r"--heads multi: .* makes no vector of a text's first token"):
        train(replace(run, heads="multi"))


def test_evaluation_ranks_by_each_head_and_by_their_sums(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 200_000)
    told: dict[str, Any] = {}
    for head in (None, "dense", "sparse", "multi"):
        output = tmp_path / f"{head}.json"
        model = str(folder / "model")
        run_evaluate(EvaluateConfig(model=model, data=folder / "data", head=head, output=output))
        told[str(head)] = json.loads(output.read_text())
    said = capfd.readouterr().out
    assert "ndcg@10 of each head, and of some together" in said
    assert "dense + multi" in said
    for head in ("dense", "sparse", "multi"):
        found = told["None"]["heads"][head]
        assert found["after"] == pytest.approx(told[head]["metrics"]["ndcg@10"])
        assert found["before"] == told["None"]["metrics"]["ndcg@10"]
    assert "heads" not in told["dense"]


def test_mined_negatives_and_scores_are_those_of_a_loop(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    rows = [{"query": query, "pos": [PASSAGES[i]]} for i, query in enumerate(QUERIES)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = own_scores(encoder)
    for i, row in enumerate(mined_rows(folder / "model", folder / "passages.txt", tmp_path)):
        allowed = [j for j in np.argsort(-wanted[i], kind="stable") if j != i and wanted[i, j] < wanted[i, i]]
        assert row["neg"] == [PASSAGES[j] for j in allowed[:2]]
    for head in (None, "dense"):
        output = tmp_path / f"scored-{head}.jsonl"
        score_command.run(
            ScoreConfig(
                model=str(folder / "model"),
                train_data=(tmp_path / "mined.jsonl",),
                output=output,
                head=head,
                teacher_temperature=1.0,
            )
        )
        expected = own_scores(Encoder.load(folder / "model", head=head))
        for i, line in enumerate(output.read_text().splitlines()):
            row = json.loads(line)
            assert row["pos_scores"] == pytest.approx([expected[i, i]], abs=1e-4)


def test_stored_rows_are_searched_and_one_head_is_stored_for_others(
    encoder: Encoder, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = search_texts(encoder, QUERIES, folder / "passages.txt", 5)
    wanted = own_scores(encoder)
    assert [hits[0].text for hits in plain] == [PASSAGES[int(best)] for best in wanted.argmax(axis=1)]
    output = tmp_path / "all.npy"
    given = EncodeConfig(model=str(folder / "model"), input=folder / "passages.txt", output=output)
    run_encode(given)
    assert "what the heads dense,sparse,multi make of 40 texts" in capfd.readouterr().out
    stored = search_texts(encoder, QUERIES, folder / "passages.txt", 5, embeddings=output)
    assert [[hit.text for hit in hits] for hits in stored] == [[hit.text for hit in hits] for hits in plain]
    run_encode(replace(given, head="dense", output=tmp_path / "dense.npy"))
    alone = Encoder.load(folder / "model", head="dense")
    np.testing.assert_array_equal(np.load(tmp_path / "dense.npy"), alone.encode(PASSAGES))
    with pytest.raises(UserError, match=r"that ends in \.npy \(the model's head is dense,sparse,multi\)"):
        run_encode(replace(given, output=tmp_path / "all.parquet"))
    with pytest.raises(UserError, match="--vectors float16: the model's head is dense,sparse,multi"):
        run_encode(replace(given, vectors="float16"))


def test_a_merge_averages_all_heads_and_distillation_takes_the_dense_one(folder: Path, tmp_path: Path) -> None:
    other = with_heads(tmp_path / "other")
    model = Encoder.load(other)
    assert model.settings.combined
    how: dict[str, Any] = {"spherical": False, "trust_remote_code": False}
    merge([str(folder / "model"), str(other)], (0.5, 0.5), tmp_path / "merged", **how)
    assert Encoder.load(tmp_path / "merged").kind == THREE
    model.weigh_heads((1.0, 1.0, 1.0))
    model.save(tmp_path / "weighed")
    with pytest.raises(UserError, match="the heads' weights"):
        merge([str(folder / "model"), str(tmp_path / "weighed")], (0.5, 0.5), tmp_path / "no", **how)
    with pytest.raises(UserError, match="the model's head is dense,sparse,multi"):
        distill(model, 8)
    model.keep_head("dense")
    assert distill(model, 8).dim == 8
