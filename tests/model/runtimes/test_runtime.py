"""What runs exported files, and what it needs."""

import sys

import pytest

from biencoder.errors import UserError
from biencoder.model.runtimes.runtime import RUNTIMES, find_runtime


@pytest.mark.parametrize(
    ("name", "package"), [("onnx", "onnxscript"), ("openvino", "onnxscript"), ("openvino", "nncf")]
)
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_runtime(name) is RUNTIMES[name]
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"--format {name} needs the package {package}, .* type: pip install biencoder\[{name}\]"
    with pytest.raises(UserError, match=message):
        find_runtime(name)
