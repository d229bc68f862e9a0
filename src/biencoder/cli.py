"""Typed words -> a configuration -> the command's function. No logic, and no heavy import before a command runs."""

import argparse
import dataclasses
import errno
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from biencoder import __version__
from biencoder.config import (
    CheckConfig,
    DemoConfig,
    DiffConfig,
    DistillConfig,
    DoctorConfig,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    MergeConfig,
    MineConfig,
    PairsConfig,
    ReportConfig,
    ScoreConfig,
    SearchConfig,
    ServeConfig,
    TrainConfig,
)
from biencoder.config.options import (
    Config,
    build,
    details,
    flag_name,
    help_text,
    in_reading_order,
    needed,
    shape,
    typed_name,
)
from biencoder.config.values import nearest
from biencoder.config.yaml_file import read_yaml
from biencoder.device.allocator import tune_allocator
from biencoder.errors import Stopped, TrainingError, UserError, require_package


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A command of ``biencoder``: its configuration, the module whose ``run`` takes it, and its help texts.

    Attributes:
        shares: whether the processes that ``torchrun`` starts share its work.
    """

    config: type[Config]
    module: str
    summary: str
    example: str
    shares: bool = False


COMMANDS = {
    "demo": Command(
        DemoConfig,
        "biencoder.commands.demo",
        "fine-tune a small model on the Python code installed here, then search with it",
        "biencoder demo",
    ),
    "train": Command(
        TrainConfig,
        "biencoder.commands.train",
        "fine-tune an embedding model",
        "biencoder train --model BAAI/bge-small-en-v1.5 --train-data pairs.jsonl --output-dir my-model",
        shares=True,
    ),
    "evaluate": Command(
        EvaluateConfig,
        "biencoder.commands.evaluate",
        "measure nDCG@10, MRR@10, recall and MAP on a BEIR folder",
        "biencoder evaluate --model my-model --data beir/scifact --split test",
        shares=True,
    ),
    "diff": Command(
        DiffConfig,
        "biencoder.commands.diff",
        "show the queries that one model answers worse or better than another",
        "biencoder diff BAAI/bge-small-en-v1.5 my-model --data beir/scifact",
        shares=True,
    ),
    "report": Command(
        ReportConfig,
        "biencoder.commands.report",
        "write a page about a finished run, or one that puts several runs side by side",
        "biencoder report my-model another-model --output runs.html",
    ),
    "encode": Command(
        EncodeConfig,
        "biencoder.commands.encode",
        "encode texts as a matrix of vectors",
        "biencoder encode --model my-model --input passages.txt --output passages.npy",
        shares=True,
    ),
    "search": Command(
        SearchConfig,
        "biencoder.commands.search",
        "find the passages that are most similar to a query, by exact search",
        'biencoder search --model my-model --corpus passages.txt --query "how do I start?"',
        shares=True,
    ),
    "serve": Command(
        ServeConfig,
        "biencoder.commands.serve",
        "serve a model's vectors over HTTP, as OpenAI's /v1/embeddings",
        "biencoder serve --model my-model",
    ),
    "mine": Command(
        MineConfig,
        "biencoder.commands.data.mine",
        "find hard negatives for training data",
        "biencoder mine --model my-model --train-data pairs.jsonl --output mined.jsonl",
        shares=True,
    ),
    "score": Command(
        ScoreConfig,
        "biencoder.commands.data.score",
        "add a teacher model's scores to training data, for distillation",
        "biencoder score --reranker my-reranker --train-data mined.jsonl --output scored.jsonl",
        shares=True,
    ),
    "check": Command(
        CheckConfig,
        "biencoder.commands.data.check",
        "find what is wrong with training data before you train on it",
        "biencoder check --train-data pairs.jsonl --eval-data beir/scifact",
    ),
    "merge": Command(
        MergeConfig,
        "biencoder.commands.models.merge",
        "average the weights of several models, to keep what the base model knew",
        "biencoder merge BAAI/bge-small-en-v1.5 my-model --weights 0.5 0.5 --output-dir my-merged-model",
    ),
    "distill": Command(
        DistillConfig,
        "biencoder.commands.models.distill",
        "make a static model out of a model: far faster, and less exact",
        "biencoder distill --model my-model --output-dir my-static-model",
    ),
    "pairs": Command(
        PairsConfig,
        "biencoder.commands.data.pairs",
        "make training pairs from documents",
        "biencoder pairs --documents docs/ --output pairs.jsonl",
    ),
    "export": Command(
        ExportConfig,
        "biencoder.commands.models.export",
        "write a model in a format for other libraries",
        "biencoder export --model my-checkpoint --output-dir my-export",
    ),
    "doctor": Command(
        DoctorConfig,
        "biencoder.commands.doctor",
        "show what runs on this machine, and what to do about what is missing",
        "biencoder doctor",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0 means success. 1 means that numbers went wrong. 2 means bad input or anything else that you must correct, such as
    a full disk. 130 follows SIGINT, and 143 follows SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not stop a run
    try:
        return _run(arguments)
    except UserError as error:
        return _fail(str(error), 2)
    except TrainingError as error:
        return _fail(str(error), 1)
    except Stopped as stop:
        _say_how_to_go_on(stop, arguments)
        return 128 + stop.signal
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("biencoder: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `biencoder search … | head`; the interpreter must not flush the pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}", 2)


# Faults that you must correct outside the program; any other OSError shows its traceback.
_ENVIRONMENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR)
_RANK_0_SPEAKS = 10.0  # seconds that the other ranks wait for rank 0 to report a mistake
COMPLETION = "--print-completion"
_OUTPUTS = ("output_dir", "output", "run_file")


def _fail(message: str, code: int) -> int:
    from biencoder.terminal import escape

    line = escape(message).replace("\n", "\\n")  # it may quote a file
    print(f"biencoder: error: {line}", file=sys.stderr, flush=True)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun repeats it below its own traceback
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
    return code


def _say_how_to_go_on(stop: Stopped, arguments: list[str]) -> None:
    from biencoder.terminal import escape

    if os.environ.get("RANK", "0") != "0":
        return
    alone = "WORLD_SIZE" not in os.environ
    command = f":\n  {shlex.join(['biencoder', *arguments])}" if alone else " the same torchrun command again"
    print(escape(f"biencoder: {stop}. To continue, run{command}"), file=sys.stderr, flush=True)


def _run(arguments: list[str]) -> int:
    if not arguments:
        _parser().print_help(sys.stderr)
        return 2
    if arguments[0] == COMPLETION:
        print(_completion(arguments[1:]))
        return 0
    try:
        command, config = _read(arguments)
        if not command.shares and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(f"biencoder {arguments[0]} is work for one process; type it without torchrun")
    except UserError:
        if os.environ.get("RANK", "0") != "0":  # all ranks meet this mistake; torchrun ends the others when one ends
            time.sleep(_RANK_0_SPEAKS)
        raise
    _start_logging()
    tune_allocator()
    importlib.import_module(command.module).run(config)
    sys.stdout.flush()  # a closed pipe fails here, not when the interpreter exits
    return 0


def _completion(shells: list[str]) -> str:
    """The script by which a shell completes commands, flags and values.

    Raises:
        UserError: another shell, or the package that writes such scripts is not installed.
    """
    require_package("shtab", COMPLETION, "completion")
    import shtab

    if len(shells) != 1 or shells[0] not in shtab.SUPPORTED_SHELLS:
        raise UserError(f"{COMPLETION} needs the name of one shell: {', '.join(shtab.SUPPORTED_SHELLS)}")
    parser = _parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    files = {"FILE": shtab.FILE, "FILE.yaml": shtab.FILE, "DIR": shtab.DIRECTORY, "MODEL": shtab.DIRECTORY}
    for name, command in COMMANDS.items():
        fields = {field.name: field for field in dataclasses.fields(command.config)}
        for action in commands.choices[name]._actions:
            if action.dest in fields and details(fields[action.dest]).choices:
                action.choices = details(fields[action.dest]).choices
            elif action.metavar in files:
                action.complete = files[action.metavar]
    script: str = shtab.complete(parser, shells[0])
    return script


def _read(arguments: list[str]) -> tuple[Command, Config]:
    parser = _parser()
    word = arguments[0]
    if word not in COMMANDS and word not in ("-h", "--help", "--version"):
        what = "flag" if word.startswith("-") else "command"
        known = [*COMMANDS, COMPLETION]
        raise UserError(f"unknown {what} {word}{nearest(word, known) or '; see biencoder --help'}")
    parsed, unknown = parser.parse_known_args(arguments)
    values: dict[str, Any] = vars(parsed)
    name = values.pop("command")
    command = COMMANDS[name]
    if unknown:
        raise UserError(_unknown_argument(name, command.config, unknown))
    if "config" in values:
        values = read_yaml(command.config, Path(values.pop("config"))) | values
    config = build(command.config, values)
    for field in _OUTPUTS:
        if (path := getattr(config, field, None)) is not None:
            _refuse_unwritable(field, path)
    return command, config


def _refuse_unwritable(field: str, path: Path) -> None:
    """Raise `UserError` now, so that hours of work do not end at a folder that cannot be written."""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if place != path and not place.is_dir():
        raise UserError(f"{flag_name(field)} {path}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK):
        raise UserError(f"{flag_name(field)} {path}: no permission to write in {place}")


def _unknown_argument(name: str, config: type[Config], unknown: list[str]) -> str:
    flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    see = f"see biencoder {name} --help"
    if flag is None and any(details(field).positional for field in dataclasses.fields(config)):
        return f"{unknown[0]!r} stands apart from the others; put all values without a flag right after {name}; {see}"
    if flag is None:
        return f"biencoder {name} takes no argument {unknown[0]!r} without a flag; {see}"
    known = [word for field in dataclasses.fields(config) for word in flags_of(field)]
    known += ["--config"] if config is TrainConfig else []
    return f"unknown flag {flag}{nearest(flag, known) or '; ' + see}"


def flags_of(field: "dataclasses.Field[Any]") -> list[str]:
    """The flags that set an option; none for an argument that is typed without one."""
    if details(field).positional:
        return []
    flag = flag_name(field.name)
    return [flag, "--no-" + flag[2:]] if shape(field)[0] is bool else [flag]


class _Parser(argparse.ArgumentParser):
    """Raises `UserError` instead of printing the usage and exiting, as argparse does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _parser() -> _Parser:
    parser = _Parser(
        prog="biencoder",
        description="Fine-tune text-embedding models on your own data, and know whether they got better.",
        epilog="'biencoder COMMAND --help' explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"biencoder {__version__}")
    parser.add_argument(
        COMPLETION,
        metavar="SHELL",
        default=argparse.SUPPRESS,
        help="print a script by which bash, zsh, fish or tcsh completes words",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=f"example: {command.example}",
            usage=_usage(name, command.config),
            allow_abbrev=False,
        )
        _add_flags(sub, command.config)
    return parser


def _add_flags(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """One flag for each field. Values stay as typed; the configuration converts and checks them, as for YAML."""
    groups: dict[str, Any] = {}
    for field in in_reading_order(config):
        declared = details(field)
        if declared.group not in groups:
            groups[declared.group] = parser.add_argument_group(declared.group)
        base, _, many = shape(field)
        if base is bool:
            words: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        else:
            words = {"metavar": metavar_of(field)} | ({"nargs": "+", "action": "extend"} if many else {})
        typed = field.name if declared.positional else flag_name(field.name)
        action = groups[declared.group].add_argument(typed, default=argparse.SUPPRESS, **words)
        action.help = help_text(field).replace("%", "%%")  # set late: BooleanOptionalAction adds a default of its own
    if config is TrainConfig:
        parser.add_argument(
            "--config",
            metavar="FILE.yaml",
            default=argparse.SUPPRESS,
            help="YAML file with options; its keys are the flags without the leading dashes, and flags override it",
        )


def _usage(name: str, config: type[Config]) -> str:
    """The required flags only; the headings below it list the rest."""
    words = []
    for field in needed(config):
        many = " ..." if shape(field)[2] else ""
        value = "" if details(field).positional else f" {metavar_of(field)}"
        words.append(f"{typed_name(field)}{value}{many}")
    return " ".join(["biencoder", name, *words, "[options]"])


def metavar_of(field: "dataclasses.Field[Any]") -> str:
    """What stands for an option's value in help texts."""
    declared = details(field)
    if declared.choices:
        return "{" + ",".join(declared.choices) + "}"
    return declared.metavar or {int: "N", float: "X"}.get(shape(field)[0], "TEXT")


def _start_logging() -> None:
    import logging

    from biencoder.terminal import LogHandler

    logger = logging.getLogger("biencoder")
    logger.handlers = [LogHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
