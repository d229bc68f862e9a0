"""Whether nDCG@10 on a task of MTEB is the figure that MTEB's own evaluator gives, for one model and local BEIR files.

python -m benchmarks.mteb_parity --data medquad/dev-small
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.get_tasks import _TASKS_REGISTRY
from sentence_transformers import SentenceTransformer

from benchmarks.workload import print_table
from biencoder import Encoder
from biencoder.data.files.beir import load_collection
from biencoder.data.files.lines import read_lines
from biencoder.demo.mini_lm import find_model
from biencoder.retrieval.evaluate import DECIDING, evaluate

SPLIT = "test"
NAME = "LocalFiles"


def register(folder: Path, *, ignores_itself: bool = False) -> None:
    """Make the BEIR files of a folder a task of MTEB by the name :data:`NAME`; titles stay apart from texts."""

    class LocalFiles(AbsTaskRetrieval):  # type: ignore[misc, unused-ignore]
        ignore_identical_ids = ignores_itself
        metadata = TaskMetadata(
            name=NAME,
            description="Local BEIR files",
            dataset={"path": "local/files", "revision": "0" * 40},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=[SPLIT],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            judged = load_collection(folder).qrels
            data: Any = {
                "corpus": rows(folder, "corpus", ("title", "text")),
                "queries": rows(folder, "queries", ("text",)),
                "relevant_docs": judged,
                "top_ranked": None,
            }
            self.dataset = {"default": {SPLIT: data}}
            self.data_loaded = True

    _TASKS_REGISTRY[NAME] = LocalFiles


def rows(folder: Path, name: str, columns: tuple[str, ...]) -> Any:
    """The ids and texts of a file of a BEIR folder, as MTEB holds them."""
    import orjson

    plain = folder / f"{name}.jsonl"
    path = plain if plain.is_file() else folder / f"{name}.jsonl.gz"
    found: list[Mapping[str, Any]] = [orjson.loads(line) for _, line in read_lines(path)]
    return Dataset.from_list([{"id": row["_id"]} | {c: row.get(c) or "" for c in columns} for row in found])


def by_mteb(model: str, max_length: int) -> float:
    """What MTEB's evaluator reports for the model, loaded by sentence-transformers."""
    loaded = SentenceTransformer(model, device="cpu")
    loaded.max_seq_length = max_length
    result = mteb.evaluate(loaded, mteb.get_task(NAME), cache=None, co2_tracker=False, show_progress_bar=False)
    (task,) = result.task_results
    return float(task.scores[SPLIT][0]["ndcg_at_10"])


def by_biencoder(model: str, max_length: int) -> float:
    """What ``biencoder evaluate --data mteb:NAME`` reports for the model."""
    encoder = Encoder.load(model, max_length=max_length, device="cpu")
    return evaluate(encoder, load_collection(Path(f"mteb:{NAME}"))).metrics[DECIDING]


def main() -> None:
    """Measure in both ways, print the two figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--model", default=None, help="model folder (default: the demo's MiniLM)")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    asked = parser.parse_args()
    model = asked.model or str(find_model())
    register(asked.data)
    theirs, ours = by_mteb(model, asked.max_length), by_biencoder(model, asked.max_length)
    described = load_collection(Path(f"mteb:{NAME}")).description
    row = [described, f"{theirs:.5f}", f"{ours:.5f}", f"{abs(theirs - ours):.5f}"]
    title = f"nDCG@10 of {Path(model).name}, at most {asked.max_length} tokens"
    print_table(title, ["task", f"mteb {mteb.__version__}", "biencoder", "difference"], [row])


if __name__ == "__main__":
    main()
