"""A model's folder, written whole or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from biencoder.files import sync_file, sync_folder, system_errors
from biencoder.model.files.heads.combined import HEADS_FILE, SAFE_HEADS
from biencoder.model.files.heads.query_table import PLACE as TABLE_PLACE
from biencoder.model.files.heads.query_table import STRUCTURE
from biencoder.model.files.pretrained import quiet
from biencoder.model.files.settings import ADAPTER_CONFIG, ModelSettings, write_settings
from biencoder.model.tokens import known_words

READABLE = 0o644
OF_OTHER_KINDS = (HEADS_FILE, *SAFE_HEADS, STRUCTURE)  # a model of another kind does not write over these
MAKES_A_MODEL = ("config.json", ADAPTER_CONFIG)
TOKENIZER_CONFIG = "tokenizer_config.json"
NEW_NAME, OLDER_NAME = "TokenizersBackend", "PreTrainedTokenizerFast"  # of one class of transformers


def save_model(
    folder: Path,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: ModelSettings,
    layers: Sequence[Mapping[str, Tensor]] = (),
    weights: dict[str, Tensor] | None = None,
) -> list[str]:
    """Write weights, configuration, tokenizer and sentence-transformers' files into ``folder``, all of them or none.

    Args:
        folder: of the model.
        backbone: the transformers model.
        tokenizer: its tokenizer, or None.
        settings: with a pooling.
        layers: the weights of each of the settings' linear layers, by name.
        weights: those of the transformers model by name, if it does not hold them whole itself.

    Returns:
        The names of the files below the folder.
    """
    written: Sequence[str] = ()
    with whole_model(folder) as staged:
        with quiet(), system_errors(staged):
            backbone.save_pretrained(staged, state_dict=weights)
            if tokenizer is not None:
                _forget_last_use(tokenizer, None if settings.static else settings.max_length)
                written = tokenizer.save_pretrained(staged)
                _use_older_name(staged / TOKENIZER_CONFIG)
                settings = replace(settings, skipped=known_words(tokenizer, settings.skipped))
        write_settings(staged, settings, int(backbone.config.hidden_size), layers)
        if settings.query_table:  # whose module has a tokenizer of its own
            for file in (Path(name) for name in written if Path(name).is_file()):
                shutil.copyfile(file, staged / TABLE_PLACE / file.name)
        return [str(file.relative_to(staged)) for file in sorted(staged.rglob("*")) if file.is_file()]


@contextlib.contextmanager
def whole_model(folder: Path) -> Iterator[Path]:
    """A temporary folder to write a model into, whose files come into ``folder`` when the block ends without an error.

    They are synced first. The configuration, which makes a folder a model, is moved there last, so a kill leaves a
    whole model or none.

    Args:
        folder: of the model; it is made when missing, and goes again if the block raises an error.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".model.", suffix=".tmp", dir=folder))
    try:
        yield staged
        _publish(staged, folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # somebody has put a file there
                folder.rmdir()
        raise
    shutil.rmtree(staged, ignore_errors=True)


def _forget_last_use(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
    """Reset what the tokenizer was last asked for: it would be saved, and two equal models would differ."""
    if not tokenizer.is_fast:
        return
    tokenizer.backend_tokenizer.no_padding()
    if max_length is None:
        tokenizer.backend_tokenizer.no_truncation()
    else:
        tokenizer.backend_tokenizer.enable_truncation(max_length, direction=tokenizer.truncation_side)


def _use_older_name(path: Path) -> None:
    """Name the tokenizer's class as transformers 4 does too, which optimum-onnx still needs."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"tokenizer_class": "{NEW_NAME}"', f'"tokenizer_class": "{OLDER_NAME}"'), "utf-8")


def _publish(staged: Path, folder: Path) -> None:
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    files.sort(key=lambda file: file.name in MAKES_A_MODEL and file.parent == staged)
    for file in files:
        sync_file(file)
        file.chmod(READABLE)  # safetensors makes files that only their owner can read
    for name in (*MAKES_A_MODEL, *OF_OTHER_KINDS):
        (folder / name).unlink(missing_ok=True)
    for file in files:
        target = folder / file.relative_to(staged)
        target.parent.mkdir(exist_ok=True)
        if file is files[-1]:
            for written in {folder / each.relative_to(staged).parent for each in files}:
                sync_folder(written)
        file.replace(target)
    sync_folder(folder)
