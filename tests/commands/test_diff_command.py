"""``biencoder diff`` as a person types it, with real models of transformers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_lines import GOOD, check_refused, fill
from tiny import tiny_model

from biencoder import Encoder, evaluate
from biencoder.cli import main
from biencoder.data.files.beir import load_collection

Diff = Callable[..., tuple[str, list[dict[str, object]]]]


@pytest.fixture
def diff(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Diff:
    """Runs the command in a folder with two models; gives what it prints, and the rows that it writes."""
    fill(tmp_path)
    tiny_model(tmp_path / "other", seed=7)
    queries = [{"_id": f"q{i}", "text": f"word{i} word{i + 7} word{3 * i}"} for i in range(5)]
    (tmp_path / "beir" / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[str, list[dict[str, object]]]:
        code = main(["diff", *words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out, [json.loads(line) for line in Path("changes.jsonl").read_text().splitlines()]

    return run


def test_what_is_printed_and_written_is_what_evaluations_say(diff: Diff) -> None:
    out, rows = diff(*GOOD["diff"])
    collection = load_collection(Path("beir"))
    before, after = (evaluate(Encoder.load(name), collection) for name in ("model", "other"))
    assert f"ndcg@10 {before.metrics['ndcg@10']:.4f} -> {after.metrics['ndcg@10']:.4f}. " in out
    assert len(rows) == 5
    for row in rows:
        query = str(row["query_id"])
        assert (row["before"], row["after"]) == (
            before.per_query["ndcg@10"][query],
            after.per_query["ndcg@10"][query],
        )
        assert str(row["query"]) in out or row["difference"] == 0
    differences = [float(str(row["difference"])) for row in rows]
    assert differences == sorted(differences)
    lost, won = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    assert lost + won > 0
    assert f"{lost} queries lost, {won} won, and {5 - lost - won} have the same ndcg@10" in out
    assert ("Queries that lost most" in out, "Queries that won most" in out) == (lost > 0, won > 0)


def test_a_model_does_not_differ_from_itself(diff: Diff) -> None:
    out, rows = diff("model", "model", *GOOD["diff"][2:])
    assert "0 queries lost, 0 won, and 5 have the same ndcg@10" in out
    assert "lost most, with" not in out
    assert all(row["found_before"] == row["found_after"] for row in rows)


def test_only_as_many_queries_as_asked_for_are_printed(diff: Diff) -> None:
    out, rows = diff(*GOOD["diff"], "--top", "0")
    assert "Queries that" not in out
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--data", "beir"], "MODEL: 1 given; name two models"),
        (["model", "other", "model", "--data", "beir"], "MODEL: 3 given; name two models"),
        (["model", "nowhere", "--data", "beir"], "MODEL nowhere: no such folder"),
        (["model", "other", "--data", "beir", "--output", "beir"], "--output beir: is a folder; name a file"),
        (["model", "other", "--data", "nothing"], "nothing"),
    ],
)
def test_bad_input(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(fill(tmp_path))
    check_refused(tmp_path, ["diff", *words], [message], capsys)
