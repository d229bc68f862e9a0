"""``biencoder report``: makes the report of a finished run again, or one that puts several runs side by side."""

from pathlib import Path

from biencoder.config import ReportConfig
from biencoder.errors import UserError
from biencoder.report.html.page import write_page
from biencoder.terminal import say

NAME = "report.html"


def run(config: ReportConfig) -> None:
    """The command: write the page.

    Raises:
        UserError: a folder is not that of a finished run, a file in it is damaged, or the output is a folder.
    """
    path = config.output or (config.runs[0] / NAME if len(config.runs) == 1 else Path(NAME))
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; name a file")
    write_page(config.runs, path)
    what = "the report" if len(config.runs) == 1 else f"{len(config.runs)} runs side by side"
    say(f"{path}: {what}. Open it in a browser")
