"""``biencoder demo``: the main job on real data without a download, from building the data to asking the model."""

import shlex
from pathlib import Path

from biencoder.config import DemoConfig, TrainConfig
from biencoder.demo.code_search import CodeSearch, DataFiles, build, write
from biencoder.demo.mini_lm import find_model
from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.retrieval.evaluate import Evaluation
from biencoder.retrieval.search_command import search_texts
from biencoder.terminal import say, table
from biencoder.training.run import train

# Two minutes of training and a minute of evaluations on two cores.
TRAIN_PAIRS = 2_000
CORPUS = 1_500
QUERIES = 500
PASSAGE_TOKENS = 128
ASKED = 4
SHOWN = 3


def run(config: DemoConfig) -> None:
    """The command: build the data, tune, compare on held-out packages, answer a few queries, say what to type next.

    Raises:
        UserError: the model is not installed or is not the published one, or ``output_dir`` holds something else.
    """
    _refuse_foreign(config.output_dir)
    model = find_model()
    say("Reading the Python packages installed here (sources are parsed, nothing is executed) ...")
    data = build(train=TRAIN_PAIRS, corpus=CORPUS, queries=QUERIES, seed=config.seed)
    files = write(data, config.output_dir / "data")
    _describe(data)
    tuned = config.output_dir / "model"
    result = train(_train_config(config, model, files, tuned))
    _answer(tuned, data, files, None if result is None else result.before)
    _what_next(model, tuned, files)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder}: is a file; give a folder")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in ("data", "model")) if folder.is_dir() else []
    if foreign:
        raise UserError(f"--output-dir {folder}: holds other things ({foreign[0]}); give an empty or a new folder")


def _describe(data: CodeSearch) -> None:
    packages = len({function.package for function in data.train})
    say(f"  {len(data.train):,} pairs of {packages} packages to train on: docstring summary -> source without it")
    say(
        f"  {len(data.queries):,} queries over {len(data.corpus):,} functions of {len(data.held_out_packages)} other "
        f"packages: {', '.join(data.held_out_packages)}"
    )
    example = data.train[0]
    say(f'  for example "{example.summary}" -> {example.name}')


def _train_config(config: DemoConfig, model: Path, files: DataFiles, output_dir: Path) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        train_data=(files.train,),
        eval_data=files.held_out,
        output_dir=output_dir,
        temperature=0.05,
        learning_rate=5e-5,
        batch_size=64,
        group_size=1,
        query_max_len=64,
        passage_max_len=PASSAGE_TOKENS,
        max_steps=config.max_steps,
        seed=config.seed,
    )


def _answer(tuned: Path, data: CodeSearch, files: DataFiles, before: Evaluation | None) -> None:
    """Search the held-out functions for the first few held-out queries; they are not picked for their outcome."""
    encoder = Encoder.load(tuned, precision="auto")
    asked = data.queries[:ASKED]
    corpus = files.held_out / "corpus.jsonl"
    found = search_texts(encoder, [function.summary for function in asked], corpus, 10)
    for function, hits in zip(asked, found, strict=True):
        ids = [hit.id for hit in hits]
        rank = str(ids.index(function.name) + 1) if function.name in ids else "below 10"
        was = "" if before is None else f" (before: {_rank_before(before, function.name)})"
        say(f'\n"{function.summary}": the right answer has rank {rank}{was}')
        table(
            [
                [str(place), f"{hit.score:.3f}", hit.id, "<- the right one" if hit.id == function.name else ""]
                for place, hit in enumerate(hits[:SHOWN], 1)
            ],
            ["rank", "score", "function", ""],
        )


def _rank_before(before: Evaluation, query: str) -> str:
    reciprocal = before.per_query["mrr@10"][query]
    return str(round(1 / reciprocal)) if reciprocal else "below 10"


def _what_next(model: Path, tuned: Path, files: DataFiles) -> None:
    quoted = {path: shlex.quote(str(path)) for path in (model, tuned, files.held_out / "corpus.jsonl")}
    base, tuned_model, corpus = quoted.values()
    say(
        f"""
Ask the tuned model yourself:
  biencoder search --model {tuned_model} --corpus {corpus} --query "remove duplicates from a list" --top-k 3

Now with your own data. Write pairs.jsonl, a line each: {{"query": "...", "pos": ["a text that answers it"]}}
  biencoder check --train-data pairs.jsonl
  biencoder train --model {base} --train-data pairs.jsonl --output-dir my-model
  biencoder search --model my-model --corpus texts.txt --query "..."
In Python: from biencoder import Encoder; Encoder.load("my-model").encode_queries(["..."])"""
    )
