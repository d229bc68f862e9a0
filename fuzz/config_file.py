"""The YAML of ``--config``. ``python -m fuzz.config_file -max_total_time=600``."""

import atheris

with atheris.instrument_imports(include=["biencoder", "yaml"]):
    import yaml

    from biencoder.config import TrainConfig
    from biencoder.config.options import build
    from biencoder.config.yaml_file import read_yaml
    from biencoder.errors import UserError

from fuzz.driver import Place, fuzz, require

PLACE = Place("run.yaml")
NEEDED = {"model": "m", "train_data": "t.jsonl", "output_dir": "o"}


def target(data: bytes) -> None:
    """Whatever is read as values can be written and read again, and is the same then."""
    path = PLACE.write(data)
    try:
        values = read_yaml(TrainConfig, path)
    except UserError as error:
        require(path.name in str(error), f"a message without the file: {error}")
        return
    try:
        config = build(TrainConfig, NEEDED | values)
    except UserError:
        return  # values that do not go together
    again = read_yaml(TrainConfig, PLACE.write(config.to_yaml().encode()))
    require(build(TrainConfig, again) == config, f"{config} is read again as {again}")


SEEDS = [
    b"model: some/model\ntrain-data: [a.jsonl, b.csv]\noutput-dir: out\nbatch-size: 32\nlearning-rate: 5e-5\n",
    b"train-data:\n  - path: [a.jsonl]\n    name: x\n    weight: 2\n    query-prompt: 'q: '\n  - b.jsonl\nmix: sqrt\n",
    b"dims: [256, 128]\nmemory-budget: 1.5GB\nnormalize: true\npooling: mean\nresume: never\n# comment\n",
    b"a: &x [1]\nb: *x\n--- \n? {k: v}\n: !!binary aGk=\n",
    b"seed: 0x10\nepochs: .inf\nquery-prompt: |\n  two\n  lines\ndropout: 2024-02-30\n",
    yaml.safe_dump({"model": "m" * 50, "temperature": 0.02}).encode(),
]

if __name__ == "__main__":
    fuzz(target, SEEDS)
