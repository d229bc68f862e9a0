import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from biencoder.errors import UserError
from biencoder.report.typed import as_json, read_typed


@dataclass(frozen=True)
class Inner:
    name: str
    share: float


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner | None
    many: list[Inner]
    named: dict[str, Inner]
    sure: bool = True
    more: list[int] = field(default_factory=list)


VALUE = Outer(3, Inner("a\ud800", 0.5), [Inner("b", 1.0)], {"c": Inner("d", 0.0)}, sure=False, more=[1])
CONTENT: dict[str, Any] = json.loads(as_json(VALUE))


def read(path: Path, content: object) -> Outer:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_typed(Outer, path)


def test_there_and_back(tmp_path: Path) -> None:
    assert read(tmp_path / "f", as_json(VALUE).decode()) == VALUE
    assert read(tmp_path / "f", CONTENT | {"newer": 1}) == VALUE
    short = {name: CONTENT[name] for name in ("count", "many", "named")} | {"inner": None}
    assert read(tmp_path / "f", short) == Outer(3, None, VALUE.many, VALUE.named)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": "3"}, "count should be int"),
        ({"count": True}, "count should be int"),
        ({"sure": 1}, "sure should be bool"),
        ({"many": {}}, "many should be list"),
        ({"many": [{"name": "b"}]}, r"many\[0\] lacks share"),
        ({"named": {"c": []}}, r"named\.c should be an object"),
        ({"inner": {"name": "a", "share": "much"}}, r"inner\.share should be float"),
        ({"inner": {"name": "a", "share": float("nan")}}, r"inner\.share should be float"),
    ],
)
def test_every_value_is_checked(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"f: not the file that biencoder wrote: {message}"):
        read(tmp_path / "f", CONTENT | changes)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "7", '"text"'])
def test_other_files(content: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="f: not the file that biencoder wrote"):
        read(tmp_path / "f", content)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: cannot be read"):
        read_typed(Outer, tmp_path / "none")
