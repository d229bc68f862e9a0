"""What a model folder says about itself, as sentence-transformers of any version wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from biencoder.errors import UserError
from biencoder.model.files.settings import ModelSettings, read_settings, write_settings

OLD_MEAN = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def write(folder: Path, modules: list[str], pooling: dict[str, Any] | None = None, **files: Any) -> Path:
    """A folder as sentence-transformers writes it: ``modules`` are class paths."""
    paths = ["" if name.endswith("Transformer") else f"{i}_{name.split('.')[-1]}" for i, name in enumerate(modules)]
    listed = [{"idx": i, "name": str(i), "path": paths[i], "type": name} for i, name in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


OLD = "sentence_transformers.models."
NEW = ("sentence_transformers.base.modules.transformer.", "sentence_transformers.sentence_transformer.modules.pooling.")


def test_a_plain_transformers_folder_says_nothing(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == ModelSettings()


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        (OLD_MEAN, "mean"),
        (OLD_MEAN | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"word_embedding_dimension": 32, "pooling_mode_lasttoken": True}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken"}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": ["mean"]}, "mean"),
        ({"embedding_dimension": 32}, "mean"),
    ],
)
def test_pooling_is_read_in_the_old_and_in_the_new_form(tmp_path: Path, pooling: dict[str, Any], name: str) -> None:
    write(tmp_path, [f"{NEW[0]}Transformer", f"{NEW[1]}Pooling"], pooling)
    assert read_settings(tmp_path).pooling == name
    assert read_settings(tmp_path).normalize is False


def test_prompts_length_and_similarity_are_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        [f"{OLD}Transformer", f"{OLD}Pooling", f"{OLD}Normalize"],
        OLD_MEAN,
        sentence_bert_config={"max_seq_length": 77, "do_lower_case": True},
        config_sentence_transformers={
            "prompts": {"search_query": "search_query: ", "passage": "passage: ", "clustering": "c: "},
            "default_prompt_name": "passage",
            "similarity_fn_name": "dot",
        },
    )
    settings = read_settings(tmp_path)
    assert settings.normalize is True
    assert (settings.max_length, settings.lowercase, settings.similarity) == (77, True, "dot")
    assert (settings.query_prompt, settings.passage_prompt, settings.default_prompt) == (
        "search_query: ",
        "passage: ",
        "passage",
    )


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], OLD_MEAN, "2_Dense/config.json: missing, though modules.json names it"),
        (["Transformer", "Pooling", "LayerNorm"], OLD_MEAN, "has a LayerNorm module"),
        (["Transformer", "Pooling"], None, "missing, though modules.json names it"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling max is not supported"),
        (
            ["Transformer", "Pooling"],
            OLD_MEAN | {"pooling_mode_cls_token": True},
            "pooling cls \\+ mean is not supported",
        ),
        (["Transformer", "Pooling"], {"pooling_mode": ["cls", "mean"]}, "pooling cls \\+ mean is not supported"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, "pooling weightedmean is not supported"),
        (["Transformer", "Pooling"], OLD_MEAN | {"include_prompt": False}, "include_prompt is false"),
        (["WordEmbeddings", "Pooling"], OLD_MEAN, "has a WordEmbeddings module"),
    ],
)
def test_what_would_give_other_vectors_is_refused(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any] | None, message: str
) -> None:
    write(tmp_path, [OLD + name for name in modules], pooling)
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(UserError, match=r"modules\.json: not valid JSON"):
        read_settings(tmp_path)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, pooling: str, normalize: bool) -> None:
    settings = ModelSettings(pooling, normalize, 64, False, {"query": "q: ", "document": ""}, None, None)
    write_settings(tmp_path, settings, 32)
    again = read_settings(tmp_path)
    assert (again.pooling, again.normalize, again.max_length, again.prompts) == (
        pooling,
        normalize,
        64,
        settings.prompts,
    )
    assert again.similarity == ("cosine" if normalize else "dot")


def test_new_prompts_replace_the_old_names() -> None:
    settings = ModelSettings(prompts={"search_query": "sq: ", "passage": "p: ", "clustering": "c: "})
    kept = settings.with_prompts(None, None)
    assert kept.prompts == {"clustering": "c: ", "query": "sq: ", "document": "p: "}
    assert kept.default_prompt == "document"
    changed = settings.with_prompts("Query: ", "")
    assert (changed.query_prompt, changed.passage_prompt, changed.default_prompt) == ("Query: ", "", None)


def test_a_folder_of_the_installed_sentence_transformers_is_read(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(str(tiny_model(tmp_path / "bert")), max_seq_length=50)
    modules = [transformer, models.Pooling(32, "cls"), models.Normalize()]
    prompts = {"query": "word1 ", "document": ""}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(tmp_path / "saved"))
    settings = read_settings(tmp_path / "saved")
    assert (settings.pooling, settings.normalize, settings.query_prompt) == ("cls", True, "word1 ")
