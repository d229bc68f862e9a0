"""The files for schedulers: they are whole, and what they start is a command that biencoder accepts."""

import re
import shlex
import subprocess
import types
from pathlib import Path

import pytest
import yaml

from biencoder import cli
from biencoder.config import TrainConfig
from biencoder.config.options import Config

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


def slurm_words() -> list[str]:
    """What srun starts."""
    text = (EXAMPLES / "train.sbatch").read_text().replace("\\\n", " ")
    return shlex.split(next(line for line in text.splitlines() if line.startswith("srun ")))


def kubernetes_words() -> list[str]:
    """What each pod starts."""
    _, job = yaml.safe_load_all((EXAMPLES / "train-job.yaml").read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize("words", [slurm_words(), kubernetes_words()], ids=["slurm", "kubernetes"])
def test_the_command_is_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Config] = []
    monkeypatch.setattr(
        "biencoder.cli.importlib",
        types.SimpleNamespace(import_module=lambda _: types.SimpleNamespace(run=asked.append)),
    )
    torchrun, ours = words[: words.index("biencoder")], words[words.index("biencoder") + 1 :]
    assert torchrun[-1] == "-m"
    assert cli.main(ours) == 0
    [config] = asked
    assert isinstance(config, TrainConfig)
    assert config.batch_size % (4 * 8) == 0  # each process gets as much


def test_the_script_is_bash_and_asks_slurm_for_what_torchrun_starts() -> None:
    path = EXAMPLES / "train.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", path.read_text(), re.MULTILINE))
    words = slurm_words()
    assert asked["ntasks-per-node"] == "1"  # torchrun starts the others
    assert words[words.index("--nproc_per_node") + 1] == asked["gpus-per-node"]


def test_the_pods_are_as_many_as_torchrun_waits_for_and_meet_at_the_first() -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "train-job.yaml").read_text())
    options = dict(word[2:].split("=", 1) for word in kubernetes_words() if word.startswith("--"))
    spec = job["spec"]
    assert str(spec["completions"]) == str(spec["parallelism"]) == options["nnodes"]
    [container] = spec["template"]["spec"]["containers"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == options["nproc_per_node"]
    name, subdomain = job["metadata"]["name"], spec["template"]["spec"]["subdomain"]
    [port] = service["spec"]["ports"]
    assert options["rdzv_endpoint"] == f"{name}-0.{subdomain}:{port['port']}"
    assert service["metadata"]["name"] == subdomain
    assert service["spec"]["selector"] == {"job-name": name}
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
