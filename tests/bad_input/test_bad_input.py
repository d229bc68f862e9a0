"""Bad input, as a person meets it: code 2, one line that says what to mend, and nothing written."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_lines import GOOD, ROWS, Refused, contents, value_of, with_flag, write_rows
from safetensors.torch import load_file, save_file
from tiny import WORDS, tiny_cross_encoder, tiny_model

from biencoder import Encoder
from biencoder.cli import COMMANDS, main


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("demo", "serve")])
@pytest.mark.usefixtures("place")
def test_the_commands_work_before_anything_is_broken(command: str) -> None:
    assert main([command, *GOOD[command]]) == 0


@pytest.mark.parametrize("command", [name for name, words in GOOD.items() if words])
def test_an_unknown_flag(command: str, refused: Refused) -> None:
    flag = GOOD[command][-2]
    typed = flag[:-1]
    refused([command, *GOOD[command], typed, "x"], f"unknown flag {typed}; did you mean {flag}?")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--batch-size", "-4", "--batch-size must be at least 1, not -4"),
        ("--temperature", "0", "--temperature must be more than 0, not 0"),
        ("--group-size", "0", "--group-size must be at least 1, not 0"),
        ("--precision", "fp16", "--precision fp16: a CPU computes it no faster than fp32"),
        ("--lora-rank", "0", "--lora-rank must be at least 1, not 0"),
        ("--lora-alpha", "4", "--lora-alpha 4 needs --lora-rank, which is not given"),
        ("--lora-save", "adapter", "--lora-save adapter needs --lora-rank, which is not given"),
        ("--freeze-layers", "-1", "--freeze-layers must be at least 0, not -1"),
        ("--freeze-layers", "3", "--freeze-layers 3: the model has 2 layers; freeze fewer"),
        ("--freeze-layers", "2", "--freeze-layers 2: leaves nothing to train, for the model has 2 layers"),
        ("--attention", "causal", "--attention causal: transformers does not offer it for bert"),
        ("--eval-split", "dev", "--eval-split dev needs --eval-data, which is not given"),
        ("--dims", "64,0", "--dims: '0' is not a number of dimensions; write them like 256,128,64"),
        ("--dims", "4096", "--dims 4096: model makes 32 dimensions"),
        ("--guide", "nowhere", "nowhere"),
        ("--guide-margin", "0.1", "--guide-margin 0.1 needs --guide, which is not given"),
        ("--sparsity", "-1", "--sparsity must be at least 0, not -1"),
        ("--sparsity", "0.1", "--sparsity 0.1 needs weights of words, and the model's head is dense"),
        ("--sparsity-norm", "l2", "--sparsity-norm must be one of flops, l1, not 'l2'"),
        ("--sparsity-norm", "l1", "--sparsity-norm l1 needs --sparsity, which is not given"),
        ("--distillation", "mse", "--distillation must be one of kl, margin-mse, not 'mse'"),
        ("--config", "none.yaml", "--config: cannot read none.yaml: No such file or directory"),
        ("--config", "texts.txt", "texts.txt: a configuration must consist of lines of the form 'key: value'"),
        ("--config", "unknown.yaml", "unknown.yaml:2: unknown key bath-size; did you mean batch-size?"),
        ("--config", "negative.yaml", "negative.yaml:1: --batch-size must be at least 1, not -4"),
    ],
)
def test_a_wrong_value(flag: str, value: str, message: str, place: Path, refused: Refused) -> None:
    (place / "unknown.yaml").write_text("epochs: 2\nbath-size: 3\n")
    (place / "negative.yaml").write_text("batch-size: -4\n")
    refused(with_flag("train", flag, value), message)


def test_lora_with_everything_frozen(place: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    refused([*with_flag("train", "--lora-rank", "4"), "--freeze-layers", "2"], "--freeze-layers 2: leaves nothing")
    tiny_model(place / "decoder", "qwen3")  # a norm behind its layers is left, which LoRA is not for
    capsys.readouterr()
    words = with_flag("train", "--model", "decoder")
    refused([*words, "--lora-rank", "4", "--freeze-layers", "2"], "--lora-rank: qwen3 has no linear layer for it in")


@pytest.mark.parametrize("command", ["evaluate", "encode", "search"])
def test_fp16_is_refused_on_a_cpu(command: str, refused: Refused) -> None:
    refused(with_flag(command, "--precision", "fp16"), "--precision fp16: a CPU computes it no faster than fp32")


@pytest.mark.parametrize("command", ["evaluate", "encode", "search"])
def test_more_dimensions_than_the_model_has(command: str, refused: Refused) -> None:
    refused(with_flag(command, "--dim", "64"), "--dim 64: model makes 32 dimensions")


def test_two_ways_need_a_batch(refused: Refused) -> None:
    words = [*with_flag("train", "--two-way", "--no-in-batch-negatives")]
    refused(words, "--two-way compares a passage with the batch's other queries; it needs --in-batch-negatives")


BAD_DATA: dict[str, tuple[list[object] | bytes | None, list[str]]] = {
    "missing.jsonl": (None, ["missing.jsonl does not exist"]),
    "not-json.jsonl": ([*ROWS[:3], "{oops"], ["not-json.jsonl:4: not JSON"]),
    "no-query.jsonl": ([*ROWS[:3], {"pos": ["word1"]}], ["no-query.jsonl:4: no query column; found: pos; known"]),
    "empty-query.jsonl": ([*ROWS[:3], {"query": " ", "pos": "word1"}], ["empty-query.jsonl:4: query is empty"]),
    "empty-positive.jsonl": ([{"query": "word1", "pos": [""]}], ["empty-positive.jsonl:1: pos holds an empty text"]),
    "no-positive.jsonl": ([{"query": "word1", "pos": []}], ["no-positive.jsonl:1: pos holds no positive"]),
    "columns.jsonl": ([{"title": "a", "body": "b"}], ["columns.jsonl:1:", "found: title, body", "known names: query"]),
    "columns.csv": (b"title,body\na,b\n", ["columns.csv:2:", "found: title, body", "known names: query"]),
    "empty.jsonl": ([], ["empty.jsonl: the file holds no rows"]),
    "pairs.docx": ([], ["pairs.docx: biencoder does not read this kind of file"]),
    "cut.jsonl.gz": (gzip.compress(json.dumps(ROWS).encode())[:-20], ["cut.jsonl.gz: the gzip stream is damaged"]),
}  # fmt: skip


@pytest.mark.parametrize("command", ["train", "mine", "score", "check"])
@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_training_data(command: str, name: str, place: Path, refused: Refused) -> None:
    content, parts = BAD_DATA[name]
    if isinstance(content, bytes):
        (place / name).write_bytes(content)
    elif content is not None:
        write_rows(place / name, content)
    refused(with_flag(command, "--train-data", name), *parts)


def test_too_little_data_to_hold_some_out(place: Path, refused: Refused) -> None:
    write_rows(place / "few.jsonl", ROWS[:4])
    refused(with_flag("train", "--train-data", "few.jsonl"), "4 distinct queries", "--eval-data")


@pytest.mark.parametrize(
    ("command", "flag"), [("encode", "--input"), ("search", "--corpus"), ("search", "--queries"), ("mine", "--corpus")]
)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "cannot read missing.txt: No such file or directory"),
        ("model", "cannot read model: Is a directory"),
        ("bad.jsonl", "bad.jsonl:2: not JSON"),
        ("columns.jsonl", "columns.jsonl:1: needs `text`, a string, and may have `title` and `_id`; found: body"),
    ],
)
def test_bad_texts(command: str, flag: str, name: str, message: str, place: Path, refused: Refused) -> None:
    write_rows(place / "bad.jsonl", [{"text": "word1"}, "{oops"])
    write_rows(place / "columns.jsonl", [{"body": "word1"}])
    words = with_flag(command, flag, name)
    if (command, name) == ("mine", "model"):
        message = "--corpus model: the folder has no corpus.jsonl"
    if flag == "--queries":
        words = [word for word in words if word not in ("--query", "word1")]
    refused(words, message)


def only_a_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def only_an_adapter(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "model.safetensors").unlink()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing"}
    (model / "adapter_config.json").write_text(json.dumps(adapter))


def cut_off(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def without_head(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "classifier" not in name}, model / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


WEIGHTS = ["train", "evaluate", "encode", "search", "mine", "export", "merge"]  # the commands that read them
BAD_MODELS: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "none": (shutil.rmtree, ["--model model: no such folder"], [*WEIGHTS, "check"]),
    "another folder": (lambda m: (m / "config.json").unlink(), ["no model in this folder"], [*WEIGHTS, "check"]),
    "only a pickle": (
        only_a_pickle,
        ["--model model: cannot be loaded", "biencoder does not read pytorch_model.bin"],
        WEIGHTS,
    ),
    "an adapter without its base": (
        only_an_adapter,
        ["--model model: is an adapter, and its base model nobody/nothing is missing"],
        WEIGHTS,
    ),
    "cut off": (cut_off, ["--model model: cannot be loaded", "safetensors file is damaged or cut off"], WEIGHTS),
    "config.json is cut off": (
        lambda m: (m / "config.json").write_text('{"model_type": "bert",'),
        ["model/config.json: not valid JSON"],
        [*WEIGHTS, "check"],
    ),
    "config.json is of something else": (
        lambda m: (m / "config.json").write_text("[]"),
        ["model/config.json: a JSON object is wanted"],
        [*WEIGHTS, "check"],
    ),
    "an unknown architecture": (
        lambda m: (m / "config.json").write_text('{"model_type": "nonesuch"}'),
        ["--model model: cannot be loaded", "nonesuch"],
        WEIGHTS,
    ),
    "tokenizer.json is cut off": (
        lambda m: (m / "tokenizer.json").write_text("{oops"),
        ["--model model: cannot be loaded (its tokenizer: "],
        [*WEIGHTS, "check"],
    ),
    "modules.json is no list": (
        lambda m: (m / "modules.json").write_text("{}"),
        ["model/modules.json: a JSON list is wanted"],
        [*WEIGHTS, "check"],
    ),
    "a module that is not run": (
        lambda m: (m / "modules.json").write_text('[{"type": "a.Transformer"}, {"type": "a.LSTM"}]'),
        ["model/modules.json: the model has a LSTM module"],
        [*WEIGHTS, "check"],
    ),
}


@pytest.mark.parametrize(
    ("kind", "command"), [(kind, command) for kind, (_, _, commands) in BAD_MODELS.items() for command in commands]
)
def test_a_bad_model(kind: str, command: str, place: Path, refused: Refused) -> None:
    damage, parts, _ = BAD_MODELS[kind]
    damage(place / "model")
    refused([command, *GOOD[command]], *parts)


@pytest.mark.parametrize("command", [name for name in WEIGHTS if name != "merge"])
def test_a_file_in_place_of_a_model(command: str, refused: Refused) -> None:
    refused(with_flag(command, "--model", "texts.txt"), "--model texts.txt: is a file; name the folder")


BAD_RERANKERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "none": (shutil.rmtree, ["no such folder"]),
    "two labels": (lambda r: tiny_cross_encoder(r, labels=2), ["has 2 labels (LABEL_0, LABEL_1)", "one label"]),
    "an embedding model": (tiny_model, ["is no cross-encoder (its config.json says BertModel"]),
    "only a pickle": (only_a_pickle, ["cannot be loaded", "biencoder does not read pytorch_model.bin"]),
    "cut off": (cut_off, ["cannot be loaded", "safetensors file is damaged or cut off"]),
    "without its head": (without_head, ["cannot be loaded", "lacks classifier."]),
}


@pytest.mark.parametrize("command", ["mine", "score"])
@pytest.mark.parametrize("kind", BAD_RERANKERS)
def test_a_bad_reranker(
    kind: str, command: str, place: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, parts = BAD_RERANKERS[kind]
    damage(place / "reranker")
    capsys.readouterr()  # the bars of transformers, when it saves another model there
    refused(with_flag(command, "--reranker", "reranker"), "--reranker reranker: ", *parts)


def test_two_teachers(refused: Refused) -> None:
    refused(with_flag("score", "--model", "model"), "give either --reranker CROSS-ENCODER or --model")


@pytest.mark.parametrize("command", ["mine", "score"])
def test_an_output_that_would_be_read_the_next_time(command: str, place: Path, refused: Refused) -> None:
    (place / "data").mkdir()
    shutil.copy(place / "pairs.jsonl", place / "data")
    words = with_flag(command, "--train-data", "data")
    words[words.index("--output") + 1] = "data/more.jsonl"
    refused(words, "--output data/more.jsonl: is in data, a folder of --train-data")


BAD_COLLECTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (shutil.rmtree, "the evaluation folder beir does not exist"),
    "no qrels": (lambda b: shutil.rmtree(b / "qrels"), "beir has no judgements; put them in beir/qrels/test.tsv"),
    "an absent document": (
        lambda b: (b / "qrels" / "test.tsv").write_text("q0\tgone\t1\nq1\tgone2\t1\n"),
        "beir/qrels/test.tsv names documents that are not in corpus.jsonl: 'gone' and 1 more",
    ),
    "an absent query": (
        lambda b: (b / "qrels" / "test.tsv").write_text("gone\td1\t1\n"),
        "beir/qrels/test.tsv names queries that are not in queries.jsonl: 'gone'",
    ),
    "not JSON": (lambda b: (b / "queries.jsonl").write_text("\n{\n"), "beir/queries.jsonl:2: not JSON"),
    "no corpus": (lambda b: (b / "corpus.jsonl").unlink(), "the evaluation folder beir has no corpus.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flag"), [("train", "--eval-data"), ("evaluate", "--data"), ("check", "--eval-data")]
)
@pytest.mark.parametrize("kind", BAD_COLLECTIONS)
def test_a_bad_evaluation_folder(kind: str, command: str, flag: str, place: Path, refused: Refused) -> None:
    damage, message = BAD_COLLECTIONS[kind]
    damage(place / "beir")
    refused(with_flag(command, flag, "beir"), message)


@pytest.mark.parametrize(("command", "flag", "value", "message"), [
    ("train", "--output-dir", "beir", "--output-dir beir: holds other things (corpus.jsonl, qrels, queries.jsonl)"),
    ("export", "--output-dir", "beir", "--output-dir beir: exists and is not empty"),
    ("demo", "--output-dir", "beir", "--output-dir beir: holds other things"),
    ("train", "--output-dir", "model", "--output-dir model: holds other things"),
    ("export", "--output-dir", "model", "--output-dir model: exists and is not empty"),
    ("merge", "--output-dir", "model", "--output-dir model: exists and is not empty"),
    *((command, "--output-dir", "texts.txt", "--output-dir texts.txt: ") for command in ("train", "export", "demo")),
    *(
        (command, flag, f"texts.txt/{value_of(command, flag)}", "texts.txt is a file, not a ")
        for command, flag in [
            ("train", "--output-dir"), ("export", "--output-dir"), ("demo", "--output-dir"), ("evaluate", "--output"),
            ("evaluate", "--run-file"), ("encode", "--output"), ("search", "--output"),
            ("mine", "--output"), ("score", "--output"),
        ]
    ),
    ("evaluate", "--output", "beir", "--output beir: is a folder; name a file"),
    ("evaluate", "--run-file", "beir", "--run-file beir: is a folder; name a file"),
    ("encode", "--output", "beir", "--output beir: must be a file that ends in .npy"),
    ("mine", "--output", "mined.csv", "--output mined.csv: must be a file that ends in .jsonl or .jsonl.gz"),
    ("mine", "--output", "./pairs.jsonl", "--output pairs.jsonl: is also an input; name another file"),
    ("score", "--output", "model/../pairs.jsonl", "--output model/../pairs.jsonl: is also an input"),
    ("score", "--output", "beir", "--output beir: must be a file that ends in .jsonl"),
    ("search", "--output", "hits.docx", "--output hits.docx: must be a file that ends in .jsonl"),
    ("pairs", "--output", "beir", "--output beir: must be a file that ends in .jsonl"),
    ("pairs", "--output", "made.csv", "--output made.csv: must be a file that ends in .jsonl"),
    ("pairs", "--output", "texts.txt/made.jsonl", "texts.txt is a file, not a "),
    ("export", "--format", "onx", "--format must be one of sentence-transformers, onnx, openvino, not 'onx'"),
])  # fmt: skip
def test_a_bad_output(command: str, flag: str, value: str, message: str, refused: Refused) -> None:
    refused(with_flag(command, flag, value), message)


def larger(model: Path) -> None:
    shutil.rmtree(model)
    tiny_model(model, hidden_size=64)


def more_words(model: Path) -> None:
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace('"word7":', '"word_7":'))


def other_case(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))


def cut_matrix(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:-1].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def other_architecture(model: Path) -> None:
    shutil.rmtree(model)
    tiny_model(model, "roberta")


def other_pooling(model: Path) -> None:
    for folder, pooling in ((model, "mean"), (model.parent / "model", "cls")):
        Encoder.load(folder, pooling=pooling).save(folder)


UNLIKE: dict[str, tuple[Callable[[Path], object], str]] = {
    "architecture": (other_architecture, "model_type is bert in model and roberta in other"),
    "dimension": (larger, "hidden_size is 32 in model and 64 in other"),
    "vocabulary": (more_words, "the tokenizer's id of 'word7' is 11 in model and None in other"),
    "tokenizer": (other_case, "what the tokenizer makes of '"),
    "weights": (cut_matrix, "embeddings.word_embeddings.weight is (204, 32) in model and (203, 32) in other"),
    "pooling": (other_pooling, "pooling is cls in model and mean in other"),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_models_that_are_not_alike_are_not_merged(
    kind: str, place: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = UNLIKE[kind]
    change(place / "other")
    capsys.readouterr()  # transformers' progress bar
    refused(["merge", *GOOD["merge"]], "only models of one kind can be merged: ", message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model"], "MODEL: model alone cannot be merged; name two or more models"),
        ([], "the following arguments are required: MODEL"),
        (["model", "none"], "--model none: no such folder"),
        (["model", "texts.txt"], "--model texts.txt: is a file; name the folder"),
        (["model", "other", "--weights", "1"], "--weights: 1 weights for 2 models; give one for each"),
        (["model", "other", "--weights", "0.5", "-0.5"], "--weights must be at least 0, not -0.5"),
        (["model", "other", "--weights", "nan", "1"], "--weights must be a number, not 'nan'"),
        (["model", "other", "--weights", "0", "0"], "--weights: all are 0"),
        (["model", "other", "model", "--spherical"], "--spherical interpolates between two models, not 3"),
        (
            ["model", "--spherical", "other"],
            "'other' stands apart from the others; put all values without a flag",
        ),
    ],
)
def test_a_merge_that_cannot_be(words: list[str], message: str, refused: Refused) -> None:
    refused(["merge", *words, "--output-dir", "merged"], message)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--keep-base", "1.5", "--keep-base: 1.5 is not a share; write a number from 0 to 1, or auto"),
        ("--keep-base", "-0.1", "--keep-base: -0.1 is not a share; write a number from 0 to 1, or auto"),
        ("--keep-base", "nan", "--keep-base: 'nan' is neither a number nor auto"),
        ("--guard-data", "none", "the evaluation folder none does not exist"),
        ("--guard-data", "model", "the evaluation folder model has no corpus.jsonl"),
        ("--guide", "none", "--guide none: no such folder"),
    ],
)
def test_what_cannot_be_kept_or_guarded(flag: str, value: str, message: str, refused: Refused) -> None:
    refused(with_flag("train", flag, value), message)


@pytest.mark.parametrize(
    ("value", "message"),
    [("none", "--baseline none: no such folder"), ("texts.txt", "--baseline texts.txt: is a file")],
)
def test_a_baseline_that_is_no_model(value: str, message: str, refused: Refused) -> None:
    refused(with_flag("evaluate", "--baseline", value), message)


GENERATOR = ["--generator", "http://localhost:9/v1", "--generator-model", "m", "--model", "model"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--documents", "missing.txt"], "cannot read missing.txt: No such file or directory"),
        (["--documents", "beir/qrels"], "--documents beir/qrels: the folder holds no .md or .markdown or .txt file"),
        (["--documents", "empty.txt"], "--documents empty.txt: the file holds no document"),
        (["--documents", "beir/corpus.jsonl", "--output", "beir/corpus.jsonl"], "is the file of the documents"),
        (["--documents", "bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["--documents", "latin.md"], "latin.md:1: not UTF-8"),
        (["--methods", "titel"], "--methods must be one of title, first-sentence, spans, headings, not 'titel'"),
        (["--max-calls", "5"], "--max-calls needs --generator URL, which is not given"),
        (["--generator", "http://localhost"], "--generator-model and --model must be given with --generator"),
        ([*GENERATOR, "--methods", "title"], "--methods makes pairs without a language model"),
        ([*GENERATOR, "--generator", "localhost:9"], "--generator localhost:9"),
        ([*GENERATOR, "--generator", "http://me:secret@host/v1"], "must not hold a user, a password or a query"),
        ([*GENERATOR, "--prompt-file", "none.txt"], "--prompt-file: cannot read none.txt: No such file or directory"),
        ([*GENERATOR, "--prompt-file", "texts.txt"], "--prompt-file texts.txt: {passage} must appear once, not 0"),
        ([*GENERATOR, "--prompt-file", "title.txt"], "unknown placeholder {title}; the only one is {passage}"),
        ([*GENERATOR, "--documents", "texts.txt"], "none of 2 documents has the 10 words that a passage needs"),
        ([*GENERATOR, "--model", "nowhere/at/all"], "--model nowhere/at/all: no such folder"),
        ([*GENERATOR, "--output", "pairs.jsonl"], "--output pairs.jsonl: exists, and to make it again would ask"),
    ],
)
def test_pairs_of_bad_input(words: list[str], message: str, place: Path, refused: Refused) -> None:
    (place / "empty.txt").touch()
    (place / "latin.md").write_bytes(b"# Caf\xe9\n")
    (place / "title.txt").write_text("{title} {passage}")
    write_rows(place / "bad.jsonl", [{"text": "word1"}, "{oops"])
    refused(["pairs", *GOOD["pairs"], *words], message)


def test_a_missing_folder_for_the_output_is_made(place: Path) -> None:
    assert main(with_flag("encode", "--output", "deep/er/vectors.npy")) == 0
    assert (place / "deep" / "er" / "vectors.npy").is_file()


def test_groups_larger_than_the_data_can_fill_are_smaller_and_that_is_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"neg": [WORDS[i + 1] for i in range(number % 3)]} for number, row in enumerate(ROWS)]
    write_rows(place / "pairs.jsonl", rows)
    assert main(with_flag("train", "--group-size", "16")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fewer than 15 hard negatives 100.0% of rows, whose groups are smaller; the most is 2" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (with_flag("train", "--train-data", "missing.jsonl"), "training data missing.jsonl does not exist"),
        (with_flag("encode", "--model", "strange"), "--model strange: cannot be loaded (The checkpoint "),
    ],
)
def test_a_real_process_in_which_libraries_may_talk_too(words: list[str], message: str, place: Path) -> None:
    shutil.copytree("model", "strange")
    (place / "strange" / "config.json").write_text('{"model_type": "nonesuch"}')
    before = contents(place)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "biencoder", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"biencoder: error: {message}")
    assert done.stderr.count("\n") == 1
    assert contents(place) == before
