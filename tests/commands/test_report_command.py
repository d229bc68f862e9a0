import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import Refused

from biencoder.cli import main


def test_the_page_of_a_run_is_made_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "run" / "report.html").read_bytes()
    (place / "run" / "report.html").unlink()
    assert main(["report", "run"]) == 0
    assert (place / "run" / "report.html").read_bytes() == before
    assert "run/report.html: the report. Open it in a browser" in capsys.readouterr().out


def test_several_runs_go_into_the_current_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("run", "another")
    assert main(["report", "run", "another"]) == 0
    assert "2 runs side by side" in (place / "report.html").read_text()
    assert "report.html: 2 runs side by side" in capsys.readouterr().out


def test_what_cannot_be_shown(place: Path, refused: Refused) -> None:
    refused(["report", "none"], "none: is not a folder; name the --output-dir of a finished run")
    refused(["report", "beir"], "beir: has no eval.json and no metrics.jsonl and no config.yaml; name the --output-dir")
    refused(["report", "run", "--output", "beir"], "--output beir: is a folder; name a file")
    shutil.copytree("run", "begun")
    (place / "begun" / "eval.json").unlink()
    marker = place / "begun" / "run.json"
    marker.write_text(marker.read_text().replace('"finished": true', '"finished": false'))
    refused(["report", "run", "begun"], "begun: the run there is not finished; the same biencoder train command")
    for content, message in (
        ("a: [", "config.yaml:1: not YAML"),
        ("- a", "config.yaml: not the file that biencoder wrote"),
    ):
        (place / "run" / "config.yaml").write_text(content)
        refused(["report", "run"], message)


def test_no_page_needs_pytorch() -> None:
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    code = f"import sys, biencoder.report.html.page; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
