from concurrent.futures import ThreadPoolExecutor

import numpy as np

from biencoder.serving.turns import Job, Turns


def job(*lengths: int) -> Job:
    return Job([np.ones(length, np.int32) for length in lengths], dim=2)


def waiting(*jobs: Job) -> Turns:
    turns = Turns()
    for each in jobs:
        turns.add(each)
    return turns


def taken(turns: Turns, most_tokens: int) -> list[tuple[Job, int]]:
    return [(text.job, text.place) for text in turns.take(most_tokens)]


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    long, short = job(*[10] * 100), job(10)
    turns = waiting(long, short)
    assert taken(turns, 30) == [(long, 0), (short, 0), (long, 1)]
    assert taken(turns, 30) == [(long, 2), (long, 3), (long, 4)]


def test_a_batch_has_at_most_so_many_tokens_but_one_text_always() -> None:
    first, second = job(50), job(6, 5)
    turns = waiting(first, second)
    assert taken(turns, 10) == [(first, 0)]
    assert taken(turns, 10) == [(second, 0)]
    assert taken(turns, 10) == [(second, 1)]


def test_a_request_that_is_over_gets_no_turn() -> None:
    cancelled, failed, wanted = job(1, 1), job(1, 1), job(1)
    turns = waiting(cancelled, failed, wanted)
    assert taken(turns, 2) == [(cancelled, 0), (failed, 0)]
    cancelled.vectors.cancel()
    failed.fail(RuntimeError())
    assert taken(turns, 9) == [(wanted, 0)]


def test_the_vectors_are_there_when_the_last_one_is() -> None:
    two = job(1, 1)
    two.put(1, np.array([3, 4], np.float32))
    assert not two.vectors.done()
    two.put(0, np.array([1, 2], np.float32))
    np.testing.assert_array_equal(two.vectors.result(), [[1, 2], [3, 4]])


def test_results_that_nobody_wants_do_no_harm() -> None:
    one = job(1)
    one.vectors.cancel()
    one.put(0, np.zeros(2, np.float32))
    one.fail(RuntimeError())
    assert one.vectors.cancelled()


def test_whoever_waits_for_a_text_is_woken_up() -> None:
    turns, one = Turns(), job(1)
    with ThreadPoolExecutor(1) as waiter:
        waiting = waiter.submit(turns.take, 9)
        turns.add(one)
        assert [text.job for text in waiting.result(10)] == [one]
        waiting = waiter.submit(turns.take, 9)
        turns.close()
        assert waiting.result(10) == []
