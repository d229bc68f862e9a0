"""Errors that end a command with one line instead of a traceback."""

import importlib.util
import signal


class UserError(Exception):
    """Bad input. The message says what was wrong, where (file, line, flag, value) and how to mend it.

    The command line prints it as one line on standard error and exits with code 2; no traceback.
    """


class TrainingError(Exception):
    """The numbers went wrong in the middle of a run; what was saved before is whole. Exit code 1."""


class Stopped(KeyboardInterrupt):
    """A signal ended a training run; the same command goes on from its last checkpoint. Exit code 128 + the signal.

    Args:
        number: of the signal.
        where: the step that the run reached and the checkpoint for that step; empty if there is none.
    """

    def __init__(self, number: int, where: str = "") -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}{where and ' ' + where}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message: PyTorch and Arrow may add a C++ stack below it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require_package(package: str, what: str, extra: str) -> None:
    """Raise `UserError` when a package of an optional extra is not installed.

    Args:
        package: its name, as it is imported.
        what: needs it, at the beginning of the sentence.
        extra: of biencoder, which brings it.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a folder of that name that happens to be here is no package
        raise UserError(
            f"{what} needs the package {package}, which is not installed; type: pip install biencoder[{extra}]"
        )
