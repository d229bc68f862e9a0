"""What a run holds does not grow with its steps; `benchmarks.endurance` looks at memory too, over thousands of them."""

import sys
import threading
from pathlib import Path

import pytest
from runs import small_run
from torch.optim.optimizer import register_optimizer_step_post_hook

from biencoder.training.run import train


@pytest.mark.skipif(sys.platform != "linux", reason="open files as Linux shows them")
def test_file_handles_and_threads_stay_as_many(tmp_path: Path) -> None:
    """Over epochs, evaluations, checkpoints and newly mined negatives, each of which opens files or starts threads."""
    config = small_run(
        tmp_path, epochs=5, eval_steps=5, save_steps=3, keep_checkpoints=1, mine_negatives=1, refresh_negatives=1
    )
    handles, threads = [], []

    def look(*_: object) -> None:
        handles.append(len(list(Path("/proc/self/fd").iterdir())))
        threads.append(threading.active_count())

    hook = register_optimizer_step_post_hook(look)
    train(config)
    hook.remove()
    assert len(handles) == 35
    assert max(handles[10:]) <= max(handles[:10])
    assert max(threads[10:]) <= max(threads[:10])
