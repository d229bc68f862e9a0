from biencoder.pairs.candidates import CandidatePairs
from biencoder.pairs.methods import Pair


def test_pairs_come_back_in_order_with_repeats_and_common_queries_marked() -> None:
    added = [
        (Pair("Introduction", "first text", "headings"), 1),
        (Pair("a query", "a passage", "title"), 1),
        (Pair("A  Query", "a\npassage", "spans"), 1),  # the same but for case and white space
        (Pair("introduction ", "second text", "headings"), 2),
        (Pair("INTRODUCTION", "third text\u2028", "headings"), 3),
        (Pair("notes", "one", "headings"), 4),
        (Pair("notes", "two", "headings"), 4),
        (Pair("notes", "three", "headings"), 4),  # three times, but in one document
    ]
    with CandidatePairs() as candidates:
        for pair, document in added:
            candidates.add(pair, document)
        assert len(candidates) == 8
        assert list(candidates) == [pair for pair, _ in added]
        assert list(candidates) == [pair for pair, _ in added]
        selection = candidates.select(2)
        assert selection.repeated.nonzero()[0].tolist() == [2]
        assert selection.common.nonzero()[0].tolist() == [0, 3, 4]
        assert selection.chosen.nonzero()[0].tolist() == [1, 5, 6, 7]
        assert candidates.select(3).chosen.nonzero()[0].tolist() == [0, 1, 3, 4, 5, 6, 7]


def test_a_document_that_stands_twice_counts_once() -> None:
    with CandidatePairs() as candidates:
        for document in (1, 1, 1):
            candidates.add(Pair("query", "passage", "title"), document)
        assert candidates.select(1).chosen.tolist() == [True, False, False]


def test_none() -> None:
    with CandidatePairs() as candidates:
        assert candidates.select(1).chosen.tolist() == []
        assert list(candidates) == []
