import os
import signal
import threading
from collections.abc import Iterator

import pytest

from biencoder import cli
from biencoder.errors import Stopped
from biencoder.training.watch.signals import finishing_steps, stop_asked, stops_by_signal


@pytest.fixture(autouse=True)
def handlers_of_before() -> Iterator[None]:
    """Every test ends with the handlers that it began with."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_steps_a_signal_is_kept_until_it_is_asked_for(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with stops_by_signal():
        with finishing_steps():
            assert stop_asked() == 0
            send(number)
            assert stop_asked() == number
        assert capfd.readouterr().err == (
            f"biencoder: {number.name}: stopping after this step, with a checkpoint; Ctrl-C stops at once\n"
        )
    with stops_by_signal():
        assert stop_asked() == 0  # another run


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_the_steps_at_once(first: signal.Signals) -> None:
    with stops_by_signal(), finishing_steps():
        send(first)
        send(signal.SIGTERM)  # some send it twice
        with pytest.raises(Stopped, match="stopped by SIGINT"):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_question_ends_the_run_with_the_steps(number: signal.Signals) -> None:
    def steps() -> None:
        with finishing_steps():
            assert stop_asked() == 0
            send(number)

    with stops_by_signal(), pytest.raises(Stopped, match="after the last step") as stop:
        steps()
    assert stop.value.signal == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_outside_of_the_steps_a_signal_ends_the_run_at_once(number: signal.Signals) -> None:
    with stops_by_signal(), pytest.raises(Stopped) as stop:
        send(number)
    assert stop.value.signal == number
    assert isinstance(stop.value, KeyboardInterrupt)  # who calls train() from Python expects that


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stops_by_signal(), finishing_steps():
            send(signal.SIGINT)
            assert stop_asked() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes() -> None:
    found = []

    def run() -> None:
        with stops_by_signal(), finishing_steps():
            found.append(stop_asked())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.parametrize(("ranks", "rank", "how"), [
    (None, "0", ":\n  biencoder evaluate --model m --data 'a b'\n"),
    ("2", "0", " the same torchrun command again\n"),
    ("2", "1", None),
])  # fmt: skip
def test_the_command_says_how_to_go_on(
    ranks: str | None, rank: str, how: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> None:
        raise Stopped(signal.SIGTERM, "after step 3 of 9, which out/checkpoints/step-00000003 holds")

    monkeypatch.setattr("biencoder.commands.evaluate.run", stop)
    monkeypatch.setenv("RANK", rank)
    if ranks is not None:
        monkeypatch.setenv("WORLD_SIZE", ranks)
    assert cli.main(["evaluate", "--model", "m", "--data", "a b"]) == 143
    said = (
        "biencoder: stopped by SIGTERM after step 3 of 9, which out/checkpoints/step-00000003 holds. To continue, run"
    )
    assert capsys.readouterr().err == ("" if how is None else said + how)
