"""Queries whose weights come from a table: the values of sentence-transformers' ``Router``, and all promises."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import resumed_and_whole, small_run
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from test_splade import PASSAGES, QUERIES, dense, language_model, with_words
from tiny import VOCABULARY, tiny_model

from biencoder import Encoder, train
from biencoder.errors import UserError
from biencoder.model.files.json_files import read_json, write_json
from biencoder.model.heads.query_table import QueryTableHead
from biencoder.model.merging.merge import merge
from biencoder.model.new_heads.query_table import make_query_table
from biencoder.model.new_heads.sparse import make_sparse
from biencoder.model.packing import pack
from biencoder.training.optimizer import TABLE_TIMES, adamw, set_learning_rate

SAID = [*QUERIES, "word3 word3 word4", "nonsense word5", ""]


def with_table(folder: Path, kind: str = "bert") -> Encoder:
    encoder = with_words(folder, kind)
    make_query_table(encoder, QUERIES, PASSAGES, PASSAGES)
    return encoder


def table_of(encoder: Encoder) -> torch.nn.Parameter:
    assert isinstance(encoder.head, QueryTableHead)
    return encoder.head.weights_V


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_weights_are_those_of_sentence_transformers(tmp_path: Path, kind: str) -> None:
    encoder = with_table(tmp_path / "model", kind)
    with torch.no_grad():
        table_of(encoder)[::7] = -1.0  # as training may leave them
    encoder.save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    asked = peer.encode_query(SAID, convert_to_sparse_tensor=False).cpu()
    found = peer.encode_document(PASSAGES, convert_to_sparse_tensor=False).cpu()
    for each in (encoder, Encoder.load(tmp_path / "model")):
        torch.testing.assert_close(dense(each.represent_queries(SAID)), asked, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(dense(each.represent_passages(PASSAGES)), found, atol=1e-5, rtol=1e-5)
    assert 0 < float((asked > 0).float().mean()) < 0.1
    peer.save_pretrained(str(tmp_path / "again"))
    again = Encoder.load(tmp_path / "again")
    torch.testing.assert_close(dense(again.represent_queries(SAID)), asked, atol=1e-6, rtol=1e-6)


def test_a_model_of_sentence_transformers_loads_and_trains_on(tmp_path: Path) -> None:
    base = str(language_model(tmp_path / "base"))
    words = Transformer(base, transformer_task="fill-mask")
    table = SparseStaticEmbedding(words.tokenizer, weight=torch.rand(VOCABULARY))
    router = Router.for_query_document([table], [words, SpladePooling()])
    peer = SparseEncoder(modules=[router], device="cpu")
    peer.save_pretrained(str(tmp_path / "theirs"))  # the transformer is in a folder of its own
    ours = Encoder.load(tmp_path / "theirs")
    wanted = peer.encode_query(QUERIES, convert_to_sparse_tensor=False).cpu()
    torch.testing.assert_close(dense(ours.represent_queries(QUERIES)), wanted, atol=1e-6, rtol=1e-6)
    found = peer.encode_document(PASSAGES, convert_to_sparse_tensor=False).cpu()
    torch.testing.assert_close(dense(ours.represent_passages(PASSAGES)), found, atol=1e-5, rtol=1e-5)
    assert train(small_run(tmp_path, model=str(tmp_path / "theirs"))) is not None
    assert Encoder.load(tmp_path / "out").settings.query_table


def test_queries_do_not_go_through_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = with_table(tmp_path / "model")
    few = [*encoder.tokenize_queries(QUERIES[:3]), ~np.arange(5, dtype=np.int32)]
    batch = pack([*few[:3], *encoder.tokenize_passages(PASSAGES), few[3]])
    alone = [encoder(pack([tokens])) for tokens in few]
    made = encoder(batch)
    assert len(made) == len(batch.lengths)
    for place, query in zip((0, 1, 2, -1), alone, strict=True):
        one = made[torch.tensor([place % len(made)])]
        torch.testing.assert_close(one.pair_scores(query), query.pair_scores(query))
    monkeypatch.setattr(encoder, "backbone", None)
    monkeypatch.setattr(Encoder, "device", torch.device("cpu"))
    assert len(encoder(pack(encoder.tokenize_queries(QUERIES)))) == len(QUERIES)


def test_the_table_starts_with_rare_words_and_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_model(tmp_path / "model"))
    passages = ["word1 word2", "word1 word3", "word1 word4"]
    make_sparse(encoder, ["word1", "word2"], passages[:2])
    make_query_table(encoder, ["word1", "word2"], passages[:2], passages)
    common, rare, unseen, special = encoder.tokenizer.convert_tokens_to_ids(["word1", "word2", "word9", "[CLS]"])
    weights = table_of(encoder)
    assert 0 < weights[common] < weights[rare] < weights[unseen]
    assert dense(encoder.represent_queries(["word1 word2"]))[0, special] == 0
    asked, found = encoder.represent_queries(["word1", "word2"]), encoder.represent_passages(passages[:2])
    score = (dense(asked) * dense(found)).sum(dim=1).mean()
    torch.testing.assert_close(score, torch.tensor(1.0))
    optimizer = adamw(encoder, 1e-3, 0.1)
    set_learning_rate(optimizer, 2e-3)
    (group,) = (group for group in optimizer.param_groups if any(each is weights for each in group["params"]))
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (2e-3 * TABLE_TIMES, 0.0, 1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        [each for each in encoder.parameters() if each.requires_grad]
    )


@pytest.mark.parametrize("expands", [True, False])
def test_a_killed_run_ends_in_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expands: bool) -> None:
    options: dict[str, Any] = {"model": str(language_model(tmp_path / "base"))} if expands else {}
    config = small_run(
        tmp_path, **options, heads="sparse", expand_words=expands, query_table=True, save_steps=3, keep_base=0.25
    )
    resumed, uninterrupted = resumed_and_whole(config, monkeypatch)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert "head.weights_V" in uninterrupted


def test_a_trained_table_is_searched_with_merged_and_trained_on(tmp_path: Path) -> None:
    config = small_run(tmp_path, heads="sparse", query_table=True, sparsity=0.01)
    assert train(config) is not None
    tuned = Encoder.load(tmp_path / "out")
    assert (tuned.kind, tuned.settings.query_table) == ("sparse", True)
    further: dict[str, Any] = {"model": str(tmp_path / "out"), "heads": None, "query_table": False}
    assert train(replace(config, **further, output_dir=tmp_path / "again")) is not None
    models = [str(tmp_path / "out"), str(tmp_path / "again")]
    merge(models, (0.5, 0.5), tmp_path / "merged", spherical=False, trust_remote_code=False)
    tables = [table_of(Encoder.load(folder)) for folder in (*models, str(tmp_path / "merged"))]
    torch.testing.assert_close(tables[2], (tables[0] + tables[1]) / 2)
    assert not torch.equal(tables[0], tables[1])
    Encoder.load(small_run(tmp_path).model).save(tmp_path / "again")  # another kind in the same folder
    assert Encoder.load(tmp_path / "again").kind == "dense"


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    for heads in (None, "multi", "dense,sparse"):
        with pytest.raises(UserError, match="--query-table needs --heads sparse"):
            train(small_run(tmp_path, heads=heads, query_table=True))
    with_table(tmp_path / "words").save(tmp_path / "words")
    model = str(tmp_path / "words")
    with pytest.raises(UserError, match="--query-table: the model has its table already"):
        train(small_run(tmp_path, model=model, query_table=True))
    with_words(tmp_path / "none").save(tmp_path / "none")
    path = tmp_path / "words" / "router_config.json"
    whole = read_json(path)
    (name,) = whole["structure"]["query"]
    damaged: list[tuple[dict[str, Any], str]] = [
        ({"structure": whole["structure"] | {"query": []}}, "queries go through nothing"),
        ({"structure": whole["structure"] | {"query": ["elsewhere"]}}, "names of modules that are in types"),
        ({"structure": whole["structure"] | {"document": None}}, "names of modules that are in types"),
        ({"types": []}, "types and structure must be JSON objects"),
        ({"types": whole["types"] | {name: "x.Dense"}}, "queries go through Dense"),
        ({"types": whole["types"] | {"../x": "a.Dense"}, "structure": {"query": [name], "document": ["../x"]}}, "out"),
    ]
    for change, message in damaged:
        write_json(path, whole | change)
        with pytest.raises(UserError, match=message):
            Encoder.load(model)
    path.unlink()
    with pytest.raises(UserError, match=r"missing, though modules\.json names a Router"):
        Encoder.load(model)
    write_json(path, whole)
    write_json(tmp_path / "words" / name / "config.json", {"path": "idf.json"})
    with pytest.raises(UserError, match=r"the weights are in 'idf\.json'"):
        Encoder.load(model)
