"""The shape of the package: small folders, short functions. Contracts in pyproject.toml check its imports."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "biencoder"
FILES_A_FOLDER = 12
LINES_A_FUNCTION = 60


def test_no_folder_is_crowded() -> None:
    folders = [SOURCE, *(path for path in SOURCE.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    assert len(folders) > 10
    crowded = {
        str(folder.relative_to(SOURCE)): count
        for folder in folders
        if (count := sum(path.is_file() for path in folder.iterdir())) > FILES_A_FOLDER
    }
    assert crowded == {}


def test_every_function_fits_on_a_screen() -> None:
    found = [
        (f"{path.relative_to(SOURCE)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(found) > 500
    assert [each for each in found if each[1] > LINES_A_FUNCTION] == []
