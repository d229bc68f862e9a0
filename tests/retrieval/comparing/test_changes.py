"""Queries in the order of what two rankings make of them."""

from biencoder.data.files.beir import Collection
from biencoder.retrieval.comparing.changes import RelevantDocument, query_changes

DOCUMENTS = [f"d{i}" for i in range(30)]


def ranked(*ids: str) -> dict[str, float]:
    """A ranking in that order."""
    return {document: -float(place) for place, document in enumerate(ids)}


def collection(qrels: dict[str, dict[str, int]]) -> Collection:
    return Collection(DOCUMENTS, DOCUMENTS, list(qrels), list(qrels), qrels, "made")


def test_those_that_lost_most_come_first_and_each_says_where_its_documents_were() -> None:
    judged = {
        "won": {"d1": 1},
        "lost": {"d1": 1},
        "same": {"d1": 1, "d2": 0},
        "gone": {"d1": 2, "d2": 1},
        "unjudged": {"d1": 0},
    }
    before = {
        "won": ranked("d3", "d1"),
        "lost": ranked("d1", "d2"),
        "same": ranked("d1"),
        "gone": ranked("d1", "d2"),
        "unjudged": ranked("d1"),
    }
    after = before | {"won": ranked("d1", "d3"), "lost": ranked("d2", "d3", "d1"), "gone": ranked("d5", "d4", "d2")}
    changes = query_changes(before, after, collection(judged))
    assert [each.query_id for each in changes] == ["gone", "lost", "same", "won"]
    gone, lost, same, won = changes
    assert (lost.before, lost.after, lost.difference) == (1.0, 0.5, -0.5)
    assert same.difference == 0
    assert won.difference > 0
    assert gone.relevant == [RelevantDocument("d1", 2, 1, None), RelevantDocument("d2", 1, 2, 3)]
    assert gone.found_after == ["d5", "d4", "d2"]


def test_below_the_cut_of_the_measure_ranks_decide() -> None:
    """nDCG@10 is 0 everywhere, and yet one of them fell far."""
    judged = {query: {"d29": 1} for query in ("fell", "stayed", "rose", "missed")}
    eleventh, last = [*DOCUMENTS[:10], "d29", *DOCUMENTS[10:29]], DOCUMENTS
    before = {"fell": ranked(*eleventh), "stayed": ranked(*last), "rose": ranked(*last), "missed": ranked(*eleventh)}
    after = {"fell": ranked(*last), "stayed": ranked(*last), "rose": ranked(*eleventh)}
    changes = query_changes(before, after, collection(judged))
    assert [each.query_id for each in changes] == ["missed", "fell", "stayed", "rose"]
    assert changes[0].found_after == []
    assert changes[0].relevant == [RelevantDocument("d29", 1, 11, None)]
