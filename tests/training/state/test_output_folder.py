import errno
import json
from pathlib import Path
from typing import Any

import pytest

from biencoder.config import TrainConfig
from biencoder.errors import UserError
from biencoder.training.state.manifest import write_manifest
from biencoder.training.state.output_folder import FREE_SETTINGS, OutputFolder

CONFIG = TrainConfig(model="base", train_data=(Path("pairs.jsonl"),), output_dir=Path("out"), batch_size=8)


def identity(**changes: Any) -> dict[str, Any]:
    """What a run is known by; digests, ``world_size`` or settings may be changed."""
    known = {"data": "d1", "evaluation": "e1", "model": "m1", "world_size": 1}
    settings = {name: value for name, value in changes.items() if name not in known}
    return {"config": CONFIG.to_dict() | settings} | {name: changes.get(name, value) for name, value in known.items()}


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder(tmp_path / "out")


@pytest.fixture
def started(folder: OutputFolder) -> OutputFolder:
    folder.start(identity(), CONFIG.to_yaml())
    return folder


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_new_or_empty_folder_is_taken_and_not_touched_yet(folder: OutputFolder, resume: str, exists: bool) -> None:
    if exists:
        folder.path.mkdir()
    folder.refuse_foreign(resume)
    folder.refuse_other_run(identity())
    assert (folder.finished, folder.newest_checkpoint()) == (False, None)
    assert folder.path.exists() is exists


def test_a_file_is_refused(folder: OutputFolder) -> None:
    folder.path.write_text("precious")
    with pytest.raises(UserError, match=r"--output-dir .*out: is a file; name a folder"):
        folder.refuse_foreign("auto")


def test_other_things_are_refused_and_the_first_three_named(folder: OutputFolder) -> None:
    folder.path.mkdir()
    for name in ("b.txt", "a.txt", "d.txt", ".c"):
        (folder.path / name).touch()
    with pytest.raises(UserError, match=r"holds other things \(\.c, a\.txt, b\.txt, …\) but not a biencoder run"):
        folder.refuse_foreign("auto")


def test_its_own_run_is_resumed_unless_resume_is_never(started: OutputFolder) -> None:
    started.refuse_foreign("auto")
    with pytest.raises(UserError, match=r"is not empty, and --resume is never"):
        started.refuse_foreign("never")


def test_start_marks_the_folder_and_keeps_the_configuration(started: OutputFolder) -> None:
    assert {path.name for path in started.path.iterdir()} == {"run.json", "config.yaml"}
    assert (started.path / "config.yaml").read_text() == CONFIG.to_yaml()
    assert json.loads((started.path / "run.json").read_text()) == identity() | {"finished": False}


def test_start_forgets_what_an_attempt_without_a_checkpoint_measured(folder: OutputFolder) -> None:
    folder.path.mkdir()
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n')
    folder.start(identity(), CONFIG.to_yaml())
    assert not (folder.path / "metrics.jsonl").exists()


def test_finish_is_remembered_with_everything_else(started: OutputFolder) -> None:
    assert not started.finished
    started.finish(["README.md"])
    again = OutputFolder(started.path)
    assert again.finished
    again.refuse_other_run(identity())
    with pytest.raises(UserError):
        again.refuse_other_run(identity(data="d2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-3}, "--learning-rate was None and is 0.001"),
        ({"query_prompt": "q: "}, "--query-prompt was None and is 'q: '"),
        ({"eval_data": "beir"}, "--eval-data was None and is 'beir'"),
        ({"data": "d2"}, "the training data have changed"),
        ({"evaluation": "e2"}, "the evaluation data have changed"),
        ({"model": "m2"}, "the base model's weights have changed"),
        (
            {"world_size": 2, "negatives_cross_device": False},
            "--negatives-cross-device was True and is False; the number of processes was 1 and is 2, which under "
            "--no-negatives-cross-device changes the negatives of each query",
        ),
        ({"batch_size": 4, "epochs": 3}, "--batch-size was 8 and is 4; --epochs was None and is 3"),
        ({"seed": 1, "data": "d2"}, "--seed was 42 and is 1; the training data have changed"),
    ],
)
def test_another_run_is_refused_by_every_difference(
    started: OutputFolder, changes: dict[str, Any], message: str
) -> None:
    before = (started.path / "run.json").read_bytes()
    with pytest.raises(UserError) as refused:
        started.refuse_other_run(identity(**changes))
    assert f"holds another run: {message}. To resume that run, give its own settings" in str(refused.value)
    assert (started.path / "run.json").read_bytes() == before


def test_the_number_of_processes_may_change(started: OutputFolder) -> None:
    started.refuse_other_run(identity(world_size=2))


def test_settings_that_compute_nothing_may_change(started: OutputFolder) -> None:
    assert CONFIG.to_dict().keys() > FREE_SETTINGS
    started.refuse_other_run(identity(**dict.fromkeys(FREE_SETTINGS, "another value")))


def test_a_run_of_an_older_version_lacks_newer_options(folder: OutputFolder) -> None:
    older = identity()
    del older["config"]["deterministic"]
    folder.start(older, CONFIG.to_yaml())
    folder.refuse_other_run(identity())


@pytest.mark.parametrize("content", ["{", "[]", '"text"', '{"config": {}}', ""])
def test_a_marker_of_somebody_else_is_a_clear_error(folder: OutputFolder, content: str) -> None:
    folder.path.mkdir()
    (folder.path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json: not the file that biencoder wrote"):
        folder.refuse_other_run(identity())


def test_the_newest_whole_checkpoint_is_where_to_go_on(started: OutputFolder) -> None:
    assert started.newest_checkpoint() is None
    for name in ("step-00000009", "step-00000010", ".step-00000011.tmp", "best-00000012"):
        (started.checkpoints / name).mkdir(parents=True)
        (started.checkpoints / name / "state.json").write_text('{"best_step": 0}')
    for name in ("step-00000009", "step-00000010"):
        write_manifest(started.checkpoints / name)
    assert started.newest_checkpoint() == started.checkpoints / "step-00000010"


def test_what_killed_attempts_left_is_swept(started: OutputFolder) -> None:
    before = {path.name for path in started.path.iterdir()}
    for path in (".README.md.k2j.tmp", ".model.x9a.tmp/config.json", "checkpoints/.step-00000003.tmp/state.json"):
        (started.path / path).parent.mkdir(parents=True, exist_ok=True)
        (started.path / path).touch()
    for step in (2, 5):
        (started.checkpoints / f"step-{step:08d}").mkdir()
    started.sweep(2)
    assert {path.name for path in started.path.iterdir()} == before | {"checkpoints"}
    assert [path.name for path in started.checkpoints.iterdir()] == ["step-00000002"]


def test_a_finished_run_knows_its_files(started: OutputFolder) -> None:
    (started.path / "1_Pooling").mkdir()
    (started.path / "1_Pooling" / "config.json").write_text("{}")
    started.finish(["README.md"])
    assert started.flaw() is None
    (started.path / "1_Pooling" / "config.json").write_text("[]")
    assert started.flaw() == "1_Pooling/config.json does not hold the bytes that were written (its SHA-256 differs)"


def test_two_processes_do_not_train_in_one_folder(folder: OutputFolder) -> None:
    with folder.claimed():
        with pytest.raises(UserError, match="another process is training there"), OutputFolder(folder.path).claimed():
            pass
        folder.start(identity(), CONFIG.to_yaml())  # what the first one does is not disturbed
    with OutputFolder(folder.path).claimed():
        assert {path.name for path in folder.path.iterdir()} == {"run.json", "config.yaml"}


def test_a_file_system_without_locks_is_no_reason_to_stop(
    folder: OutputFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level("INFO"), folder.claimed():
        assert "cannot be locked (No locks available)" in caplog.text
