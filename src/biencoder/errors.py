"""The two ways to stop with one line instead of a traceback."""


class UserError(Exception):
    """Bad input. The message says what was wrong, where (file, line, flag, value) and how to mend it.

    The command line prints it as one line on standard error and exits with code 2; no traceback.
    """


class TrainingError(Exception):
    """The numbers went wrong in the middle of a run; what was saved before is whole. Exit code 1."""
