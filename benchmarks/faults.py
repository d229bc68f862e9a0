"""Faults injected into training runs, each of which is then started again and compared with an undisturbed one.

python -m benchmarks.faults

Takes about a quarter of an hour. Needs what the tests need; the rows of a real full disk need root, to mount one.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.workload import ROOT, print_table

sys.path.insert(0, str(ROOT / "tests"))

from fault_points import AtCall, AtOperation
from faults import SCENARIOS, AfterSeconds, Damage, Fault, Outcome, Place

COLUMNS = ["fault", "times injected", "ended as promised", "resumed", "ended bitwise equal"]
READING = ("read", "scandir", "listdir", "flock")  # before and after which the disk is the same
WRITING = ("create or write", "fsync", "fsync of a folder", "mkdir", "rename")
LONGEST = 1.2  # seconds of training in which a signal comes; one that comes too late is drawn again
HOWS = ("cut", "emptied", "one bit flipped", "deleted")

Promise = Callable[[Outcome], bool]


def killed(outcome: Outcome) -> bool:
    """By SIGKILL; other ranks end by themselves."""
    return -9 in outcome.codes


def one_message(outcome: Outcome) -> bool:
    """Exit code 2, a line that says what to do, no traceback."""
    errors = [line for line in outcome.said.splitlines() if line.startswith("biencoder: error: ")]
    return (
        outcome.codes == [2] and len(errors) == 1 and "No space left" in errors[0] and "Traceback" not in outcome.said
    )


def stopped(number: int) -> Promise:
    """All ranks with the code of the signal, and the way to go on is said."""
    return lambda outcome: set(outcome.codes) == {128 + number} and "To continue" in outcome.said


def passed_over(outcome: Outcome) -> bool:
    """The second run named the broken checkpoint and began from the one before."""
    return killed(outcome) and "is broken and passed over" in outcome.said_then and outcome.from_step == 6


class Table:
    """What came of all of it, a row at a time on the terminal; of faults whose title contains ``part``."""

    def __init__(self, part: str = "") -> None:
        self.part = part
        self.rows: list[list[str]] = []
        self.wrong: list[str] = []
        self.totals = [0] * 4

    def add(self, title: str, outcomes: Iterable[tuple[str, Outcome]], promise: Promise) -> None:
        if self.part not in title:
            return
        counts = [0] * 4
        for what, outcome in outcomes:
            if not outcome.hit:
                continue
            found = (True, promise(outcome), outcome.resumed, outcome.equal)
            counts = [count + each for count, each in zip(counts, found, strict=True)]
            if not all(found):
                self.wrong.append(f"{title}, {what}: {outcome}")
                print(self.wrong[-1], file=sys.stderr, flush=True)
        self.totals = [total + count for total, count in zip(self.totals, counts, strict=True)]
        self.rows.append([title, *map(str, counts)])
        print(" | ".join(self.rows[-1]), file=sys.stderr, flush=True)


def each(place: Place, faults: Iterable[Fault], *, forked: bool = True) -> Iterator[tuple[str, Outcome]]:
    """The outcome of every one of them."""
    for fault in faults:
        yield str(fault), place.inject(fault, forked=forked)


def at_moments(
    place: Place, count: int, draw: random.Random, *, number: int = 9, forked: bool = True
) -> Iterator[tuple[str, Outcome]]:
    """As many signals as are asked for, at random moments."""
    hit = 0
    while hit < count:
        fault = AfterSeconds(draw.uniform(0, LONGEST), number)
        outcome = place.inject(fault, forked=forked)
        hit += outcome.hit
        yield str(fault), outcome


def on_small_disks(place: Place, sizes: Iterable[int]) -> Iterator[tuple[str, Outcome]]:
    """A run on a file system of so many kilobytes, which has room for the second run."""
    work = place.folder / "small"
    disk = work / "out"
    for size in sizes:
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
        try:
            codes, _, err = place.run(work)
            outcome = Outcome(any(codes), codes, err)
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            if outcome.hit:
                place.resume(work, outcome)
            yield f"{size} kB", outcome
        finally:
            subprocess.run(["umount", disk], check=True)
            disk.rmdir()


def walk(table: Table, place: Place) -> None:
    """Everything that is done to files, one after the other."""
    operations = list(enumerate(place.operations))
    kills = (AtOperation(i) for i, (name, _) in operations if name not in READING)
    table.add("SIGKILL before every file operation of a run that changes something", each(place, kills), killed)
    torn = (AtOperation(i, "torn") for i, (name, _) in operations if name == "fsync")
    table.add("SIGKILL with half of a file written, at every sync of one", each(place, torn), killed)
    full = [AtOperation(i, "full") for i, (name, _) in operations if name in WRITING]
    table.add("no space left, at every sixth operation that writes", each(place, full[::6]), one_message)
    if os.geteuid() == 0:
        table.add("a small disk runs full", on_small_disks(place, range(80, 900, 80)), one_message)
    names = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    breaks = (Damage(f"checkpoints/step-00000008/{name}", how) for name in names for how in HOWS)
    title = "SIGKILL, then a file of the newest checkpoint cut, emptied, flipped or deleted"
    table.add(title, each(place, breaks), passed_over)


def moments(table: Table, place: Place, draw: random.Random) -> None:
    """Steps, evaluations and signals of one way of training."""
    scenario = place.scenario
    if place.ranks == 1:
        steps = (AtCall("biencoder.training.steps.train_step", "sum_gradients", n) for n in range(8))
        table.add(f"SIGKILL between gradient and weights of each step: {scenario}", each(place, steps), killed)
        passes = (AtCall("biencoder.model.encoder", "chunks", n) for n in range(6))
        table.add(f"SIGKILL in evaluation or mining: {scenario}", each(place, passes), killed)
    table.add(f"SIGKILL at random moments: {scenario}", at_moments(place, 8, draw), killed)
    for number, name in ((15, "SIGTERM"), (2, "SIGINT")):
        asked = at_moments(place, 3, draw, number=number)
        table.add(f"{name} at random moments: {scenario}", asked, stopped(number))


def main() -> None:
    """Inject, print the table; exit code 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--faults", default="", help="only those that contain this text")
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background has its children ignore
    draw, table = random.Random(asked.seed), Table(asked.faults)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for scenario in SCENARIOS:
            place = Place(Path(folder) / scenario.replace(" ", "-"), scenario)
            if scenario == "plain":
                walk(table, place)
                real = at_moments(place, 4, draw, forked=False)
                table.add("SIGKILL at random moments: plain, processes of their own", real, killed)
            moments(table, place, draw)
    table.rows.append(["**all**", *(f"**{total}**" for total in table.totals)])
    print_table("Faults injected into training runs", COLUMNS, table.rows)
    sys.exit(bool(table.wrong))


if __name__ == "__main__":
    main()
