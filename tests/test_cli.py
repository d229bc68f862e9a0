import errno
import json
import os
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import biencoder
from biencoder import cli
from biencoder.config import EncodeConfig, MergeConfig, TrainConfig
from biencoder.errors import UserError

HEAVY = ("torch", "transformers", "tokenizers", "pyarrow", "rich", "numpy", "faiss", "yaml", "sentence_transformers")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[Any]]]:
    """Runs the command line with every command replaced by one that notes its configuration, or does ``effect``."""

    def run(*words: str, effect: Callable[[], None] = lambda: None) -> tuple[int, list[Any]]:
        configs: list[Any] = []

        def command(config: Any) -> None:
            configs.append(config)
            effect()

        module = types.SimpleNamespace(run=command)
        monkeypatch.setattr("biencoder.cli.importlib", types.SimpleNamespace(import_module=lambda _: module))
        return cli.main(words), configs

    return run


MINE = ("mine", "--model", "m", "--train-data", "a", "--output", "b")
NEEDED = ("train", "--model", "base", "--train-data", "a.jsonl", "b.jsonl", "--output-dir", "out")


def loaded_after(code: str) -> list[str]:
    """The heavy modules that are loaded when ``code`` has run in an interpreter of its own."""
    script = f"{code}\nimport json, sys\nprint('\\n' + json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return modules


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import biencoder; biencoder.TrainConfig") == []


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"from biencoder.cli import main\ntry: main({words!r})\nexcept SystemExit as end: assert not end.code"
    assert loaded_after(code) == []


def imported_by(*arguments: str) -> set[str]:
    """All modules that an interpreter imports, as it reports itself."""
    command = [sys.executable, "-X", "importtime", *arguments]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")}


def test_help_answers_at_once() -> None:
    """It imports Python's own modules and, of ours, what flags are made of; `benchmarks.startup` takes the time."""
    imported = imported_by("-m", "biencoder", "--help") - imported_by("-c", "pass")
    assert {"argparse", "biencoder.cli"} <= imported
    ours = {name for name in imported if name.split(".")[0] == "biencoder"}
    assert {name.split(".")[1] for name in ours - {"biencoder"}} <= {"cli", "config", "device", "errors"}
    others = {name.split(".")[0] for name in imported - ours}
    assert others - {"org"} <= set(sys.stdlib_module_names)  # `copy` tries to import Jython's org


def test_the_lazy_check_would_see_a_heavy_import() -> None:
    assert "numpy" in loaded_after("import numpy")


@pytest.mark.parametrize("name", ["BiEncoderModel", "Encoder", "evaluate", "mine_hard_negatives", "train"])
def test_the_names_of_the_python_interface_exist(name: str) -> None:
    assert callable(getattr(biencoder, name))
    assert name in dir(biencoder)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        biencoder.nonsense  # noqa: B018


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_has_a_function_that_takes_its_configuration(name: str) -> None:
    command = cli.COMMANDS[name]
    run = __import__(command.module, fromlist=["run"]).run
    assert run.__annotations__["config"] in (command.config, command.config.__name__)


def test_flags_become_the_configuration(asked: Callable[..., tuple[int, list[Any]]]) -> None:
    words = (
        "--batch-size",
        "128",
        "--no-normalize",
        "--temperature",
        "1",
        "--query-prompt",
        "",
        "--no-in-batch-negatives",
    )
    code, configs = asked(*NEEDED, *words)
    assert code == 0
    assert configs == [
        TrainConfig(
            model="base", train_data=(Path("a.jsonl"), Path("b.jsonl")), output_dir=Path("out"), batch_size=128,
            normalize=False, temperature=1.0, query_prompt="", in_batch_negatives=False,
        )
    ]  # fmt: skip


def test_a_list_may_be_given_in_parts(asked: Callable[..., tuple[int, list[Any]]]) -> None:
    _, (config,) = asked(*NEEDED, "--train-data", "c.jsonl")
    assert config.train_data == (Path("a.jsonl"), Path("b.jsonl"), Path("c.jsonl"))


def test_flags_win_over_the_file(asked: Callable[..., tuple[int, list[Any]]], tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("model: from-file\nbatch-size: 32\nepochs: 3\nnormalize: false\ntemperature: 1\n")
    flags = ("--train-data", "a", "--output-dir", "out", "--batch-size", "16")
    code, (config,) = asked("train", "--config", str(path), *flags)
    assert code == 0
    assert (config.model, config.batch_size, config.epochs, config.normalize) == ("from-file", 16, 3, False)


def test_the_command_for_texts(asked: Callable[..., tuple[int, list[Any]]]) -> None:
    _, configs = asked("encode", "--model", "m", "--input", "a.txt", "--output", "a.npy", "--kind", "query")
    assert configs == [EncodeConfig(model="m", input=Path("a.txt"), output=Path("a.npy"), kind="query")]


@pytest.mark.parametrize(
    "words",
    [
        ("a", "b", "--weights", "1", "3", "--output-dir", "out"),
        ("--weights", "1", "3", "--output-dir", "out", "a", "b"),
        ("--output-dir=out", "a", "b", "--weights", "1", "--weights", "3"),
    ],
)
def test_values_without_a_flag(words: tuple[str, ...], asked: Callable[..., tuple[int, list[Any]]]) -> None:
    assert asked("merge", *words) == (0, [MergeConfig(models=("a", "b"), weights=(1, 3), output_dir=Path("out"))])


def test_help_of_values_without_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["merge", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: biencoder merge MODEL ... --output-dir DIR [options]" in text
    assert "MODEL two or more models of one architecture" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*NEEDED, "--bath-size", "3"), "unknown flag --bath-size; did you mean --batch-size?"),
        ((*NEEDED, "--bath-size=3"), "unknown flag --bath-size; did you mean --batch-size?"),
        ((*NEEDED, "--batch", "3"), "unknown flag --batch; did you mean --batch-size?"),
        ((*NEEDED, "--no-normalise"), "unknown flag --no-normalise; did you mean --no-normalize?"),
        ((*NEEDED, "--confg", "x"), "unknown flag --confg; did you mean --config?"),
        ((*NEEDED, "--zzz"), "unknown flag --zzz; see biencoder train --help"),
        (("train", "pairs.jsonl"), "biencoder train takes no argument 'pairs.jsonl' without a flag"),
        ((*NEEDED, "--batch-size", "-4"), "--batch-size must be at least 1, not -4"),
        ((*NEEDED, "--batch-size"), "--batch-size: expected one argument"),
        ((*NEEDED, "--temperature", "0"), "--temperature must be more than 0, not 0.0"),
        ((*NEEDED, "--temperature", "0.9"), "--temperature 0.9 is above 0.5: cosines"),
        ((*NEEDED, "--config", "nope.yaml"), "--config: cannot read nope.yaml: No such file or directory"),
        (("train", "--model", "m"), "--train-data and --output-dir must be given"),
        (("trian",), "unknown command trian; did you mean train?"),
        (("knead",), "unknown command knead"),
        (
            ("score", "--train-data", "a", "--output", "b"),
            "give either --reranker CROSS-ENCODER or --model",
        ),
        ((*MINE, "--depth", "5"), "--depth 5 leaves no room for --negatives 7 after --skip-top 0; use at least 7"),
        (("--verbose",), "unknown flag --verbose; see biencoder --help"),
        (("search", "--model", "m", "--corpus", "c"), "give either --query 'TEXT' or --queries FILE"),
        (("evaluate", "--config", "x"), "unknown flag --config"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: tuple[str, ...],
    message: str,
    asked: Callable[..., tuple[int, list[Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, configs = asked(*words)
    out, err = capsys.readouterr()
    assert (code, configs, out) == (2, [], "")
    assert err.startswith(f"biencoder: error: {message}")
    assert err.count("\n") == 1


def raising(error: BaseException) -> Callable[[], None]:
    def effect() -> None:
        raise error

    return effect


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a.jsonl:3: no query"), 2, "biencoder: error: a.jsonl:3: no query\n"),
        (UserError("found: a\x1b[2J\nb"), 2, "biencoder: error: found: a\\x1b[2J\\nb\n"),
        (KeyboardInterrupt(), 130, "biencoder: interrupted\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out/x"), 2,
            "biencoder: error: /out/x: Permission denied\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "biencoder: error: No space left on device\n"),
    ],
)  # fmt: skip
def test_how_a_command_may_end(
    error: BaseException, code: int, message: str, asked: Callable[..., tuple[int, list[Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert asked("demo", effect=raising(error))[0] == code
    assert capsys.readouterr().err == message


def test_our_own_mistakes_keep_their_traceback(asked: Callable[..., tuple[int, list[Any]]]) -> None:
    with pytest.raises(ZeroDivisionError):
        asked("demo", effect=raising(ZeroDivisionError()))
    with pytest.raises(FileNotFoundError):
        asked("demo", effect=raising(FileNotFoundError(errno.ENOENT, "gone", "x")))


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [cli._RANK_0_SPEAKS])])
def test_rank_0_says_first_what_all_ranks_typed_wrong(
    rank: str, waits: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    assert cli.main(["train", "--bath-size", "3"]) == 2
    assert waited == waits
    assert "did you mean --batch-size?" in capsys.readouterr().err


def test_an_error_goes_where_torchrun_repeats_it(
    asked: Callable[..., tuple[int, list[Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert asked("demo", effect=raising(UserError("a.jsonl:3: no query")))[0] == 2
    written = json.loads((tmp_path / "error.json").read_text())["message"]
    assert written["message"] == "a.jsonl:3: no query"
    assert int(written["extraInfo"]["timestamp"]) > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--output-dir", "file/folder"), "--output-dir file/folder: {place}/file is a file, not a folder"),
        (("--output-dir", "locked/folder"), "--output-dir locked/folder: no permission to write in {place}/locked"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_first(
    flags: tuple[str, ...], message: str, asked: Callable[..., tuple[int, list[Any]]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("locked").mkdir()
    allowed = os.access
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    code, configs = asked(*NEEDED[:-2], *flags)
    assert (code, configs) == (2, [])
    assert capsys.readouterr().err == f"biencoder: error: {message.format(place=tmp_path)}\n"


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in cli.COMMANDS)


def test_the_module_runs_and_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "biencoder", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"biencoder {biencoder.__version__}\n"
    script = (
        "import sys, types, importlib; from biencoder import cli\n"
        "run = lambda config: [print('x' * 1000) for _ in range(1000)]\n"
        "cli.importlib = types.SimpleNamespace(import_module=lambda _: types.SimpleNamespace(run=run))\n"
        "sys.exit(cli.main(['demo']))"
    )
    command = f'{sys.executable} -c "$SCRIPT" | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}'
    piped = subprocess.run(
        ["bash", "-c", command], env={"SCRIPT": script, "PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert (piped.returncode, piped.stderr) == (141, b"")


def test_help_of_train_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: biencoder train --model MODEL --train-data FILE ... --output-dir DIR [options]" in text
    assert "--batch-size N queries per optimizer step over all ranks" in text
    assert "--normalize, --no-normalize" in text
    assert "(default: 0.05; 0.02 with a head multi;" in text
    assert "SUPPRESS" not in text


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    asked = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}"
    told = f"source {shlex.quote(str(script))}; {asked}; _shtab_biencoder; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return subprocess.run(["bash", "-c", told], capture_output=True, text=True, check=True).stdout.split()


def test_a_shell_completes_commands_flags_values_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "pairs.jsonl").touch()
    assert completed(script, "biencoder", "tr") == ["train"]
    assert completed(script, "biencoder", "train", "--pool") == ["--pooling"]
    assert completed(script, "biencoder", "train", "--heads", "dense,") == [
        "dense,sparse",
        "dense,multi",
        "dense,sparse,multi",
    ]
    assert completed(script, "biencoder", "train", "--train-data", f"{tmp_path}/pa") == [f"{tmp_path}/pairs.jsonl"]
    assert completed(script, "biencoder", "export", "--format", "o") == ["onnx", "openvino"]


@pytest.mark.parametrize("words", [[], ["cmd"], ["bash", "zsh"]])
def test_another_shell_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", *words]) == 2
    assert "--print-completion needs the name of one shell: bash, zsh" in capsys.readouterr().err
