"""The JSON files of a model folder, which may come from anyone."""

import json
from pathlib import Path
from typing import Any

from biencoder.errors import UserError
from biencoder.files import atomic_write


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file of a model folder; None where there is none.

    Raises:
        UserError: it is damaged, or holds something else than ``kind``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise UserError(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: a JSON {'object' if kind is dict else 'list'} is wanted there")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write one whole or not at all, to be read by people too."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def inside(folder: Path, path: Any) -> Path:
    """The folder of a module that ``modules.json`` names.

    Raises:
        UserError: it is neither the model's own nor one in it.
    """
    place = folder / str(path)
    if not place.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / 'modules.json'}: names the path {path!r}, which leads out of the folder")
    return place
