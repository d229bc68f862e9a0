"""``biencoder demo``: the main job on real data without a download, from building the data to asking the model."""

import shlex
from pathlib import Path

from biencoder.config import DemoConfig, TrainConfig
from biencoder.config.choices import AUTO
from biencoder.demo.code_search import CodeSearch, DataFiles, build, write
from biencoder.demo.mini_lm import find_model
from biencoder.errors import UserError
from biencoder.model.encoder import Encoder
from biencoder.retrieval.evaluate import Evaluation
from biencoder.retrieval.search_texts import search_texts
from biencoder.terminal import say, table
from biencoder.training.run import TrainResult, train

# Two minutes of training and a minute of evaluations on two cores.
TRAIN_PAIRS = 1_500
CORPUS = 1_000
QUERIES = 500
PASSAGE_TOKENS = 128
ASKED = 2  # queries that won, and as many that lost
SHOWN = 3


def run(config: DemoConfig) -> None:
    """The command: build the data, tune, compare on held-out packages, answer a few queries, say what to type next.

    Raises:
        UserError: the model is not installed or is not the published one, or ``output_dir`` holds something else.
    """
    _refuse_foreign(config.output_dir)
    model = find_model()
    say("Reading the Python packages installed here (biencoder parses the sources and executes nothing) ...")
    data = build(train=TRAIN_PAIRS, corpus=CORPUS, queries=QUERIES, seed=config.seed)
    files = write(data, config.output_dir / "data")
    _describe(data)
    tuned = config.output_dir / "model"
    result = train(_train_config(config, model, files, tuned))
    _answer(tuned, data, files, result)
    _what_next(model, tuned, files)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder}: is a file; name a folder")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in ("data", "model")) if folder.is_dir() else []
    if foreign:
        raise UserError(f"--output-dir {folder}: holds other things ({foreign[0]}); name an empty or a new folder")


def _describe(data: CodeSearch) -> None:
    packages = len({function.package for function in data.train})
    say(
        f"  {len(data.train):,} pairs from {packages} packages to train on: the summary of a docstring "
        "-> the source without it"
    )
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
        batch_size=64,
        group_size=1,
        query_max_len=64,
        passage_max_len=PASSAGE_TOKENS,
        epochs=1,
        max_steps=config.max_steps,
        seed=config.seed,
    )


def _answer(tuned: Path, data: CodeSearch, files: DataFiles, result: TrainResult | None) -> None:
    """Search the held-out functions for a few queries: the first ones that won, then the first ones that lost."""
    asked = [("", function) for function in data.queries]
    if result is not None:
        before, after = _ranks(result.before), _ranks(result.after)
        won = [function for function in data.queries if after[function.name] < before[function.name]]
        lost = [function for function in data.queries if after[function.name] > before[function.name]]
        say(
            f"\nThe right answer moved up for {len(won)} queries and down for {len(lost)}. These are the first of both:"
        )
        moved = [("won", function) for function in won[:ASKED]] + [("lost", function) for function in lost[:ASKED]]
        asked = [
            (f"{word}: the right answer went from rank {_shown(before[f.name])} to {_shown(after[f.name])}", f)
            for word, f in moved
        ]
    encoder = Encoder.load(tuned, precision=AUTO)
    asked = asked[: 2 * ASKED]
    found = search_texts(encoder, [f.summary for _, f in asked], files.held_out / "corpus.jsonl", SHOWN)
    for (move, function), hits in zip(asked, found, strict=True):
        say(f'\n"{function.summary}"{move and f"  ({move})"}')
        rows = [
            [str(place), f"{hit.score:.3f}", hit.id, "<- the right one" if hit.id == function.name else ""]
            for place, hit in enumerate(hits, 1)
        ]
        table(rows, ["rank", "score", "function", ""])


def _ranks(evaluation: Evaluation) -> dict[str, int]:
    """The rank of each query's one right answer; 101 below the 100th. Average precision is the inverse of that rank."""
    precision = evaluation.per_query["map@100"]
    return {query: round(1 / value) if value else 101 for query, value in precision.items()}


def _shown(rank: int) -> str:
    return str(rank) if rank <= 100 else "below 100"


def _what_next(model: Path, tuned: Path, files: DataFiles) -> None:
    quoted = {path: shlex.quote(str(path)) for path in (model, tuned, files.held_out / "corpus.jsonl")}
    base, tuned_model, corpus = quoted.values()
    say(
        f"""
Ask the tuned model yourself:
  biencoder search --model {tuned_model} --corpus {corpus} --query "remove duplicates from a list" --top-k 3

Now use your own data. Write one object per line in pairs.jsonl: {{"query": "...", "pos": ["a text that answers it"]}}
  biencoder check --train-data pairs.jsonl
  biencoder train --model {base} --train-data pairs.jsonl --output-dir my-model
  biencoder search --model my-model --corpus texts.txt --query "..."
In Python: from biencoder import Encoder; Encoder.load("my-model").encode_queries(["..."])"""
    )
