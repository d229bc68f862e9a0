"""``manifest.json`` says what the files of a folder were when it was written, so that a later loss shows.

It is written last. A rename makes a folder appear whole, but afterwards disks fail, and people copy folders and delete
files.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from biencoder.files import sync_file

NAME = "manifest.json"
BLOCK = 1 << 20  # bytes read at a time


def record(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of each of these files below ``folder``."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in sorted(names)}


def write_manifest(folder: Path) -> None:
    """Record every file in ``folder``, which is complete but for this one."""
    path = folder / NAME
    content = {"files": record(folder, [entry.name for entry in folder.iterdir()])}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync_file(path)


def flaw(folder: Path) -> str | None:
    """What is wrong with a folder that :func:`write_manifest` completed; None when every byte is as it was."""
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        return flaw_of(folder, files)
    except FileNotFoundError:
        return f"{NAME} is missing"
    except OSError as error:
        return f"{NAME} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} is damaged"


def flaw_of(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with the first of ``files`` below ``folder`` that is not as :func:`record` says; else None."""
    for name, was in files.items():
        wanted, digest = was["bytes"], was["sha256"]
        try:
            size = (folder / name).stat().st_size
            if size != wanted:
                return f"{name} has {size:,} bytes and not the {wanted:,} that were written"
            if _sha256(folder / name) != digest:
                return f"{name} does not hold the bytes that were written (its SHA-256 differs)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or os.strerror(error.errno or 0)})"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
