"""The documents say what is so. `python tests/test_docs.py` writes the tables of options again."""

import dataclasses
import re
import shlex
import types
from pathlib import Path

import pytest
from documented import PAGES, ROOT, blocks, commands

import biencoder
from biencoder import cli
from biencoder.config.options import Config, details, help_text, in_reading_order, shape, typed_name

TORCHRUNS = {
    "--standalone",
    "--nnodes",
    "--nproc_per_node",
    "--rdzv_id",
    "--rdzv_backend",
    "--rdzv_endpoint",
    "--max_restarts",
}
OTHERS_FLAGS = {"--help", "--config", "--small"} | TORCHRUNS


def options_table(config: type[Config]) -> str:
    if not in_reading_order(config):
        return "This command has no options."
    lines = ["| option | what | default |", "| --- | --- | --- |"]
    for field in in_reading_order(config):
        text, _, default = help_text(field).rpartition(" (default: ")
        value = "" if shape(field)[0] is bool else f" {cli.metavar_of(field)}"
        flags = ", ".join(f"`{flag}{value}`" for flag in cli.flags_of(field)) or f"`{typed_name(field)} ...`"
        text, default = (text, default[:-1]) if text else (details(field).help, "required")
        lines.append(f"| {flags} | {text} | {default} |")
    return "\n".join(lines)


LINE_LINK = re.compile(r"\[`(\w+)`\]\(([^)#]+)#L(\d+)\)")


def defined_at(path: Path, name: str) -> int:
    """The line that defines a function or class of a file, or else a method, from 1."""
    lines = list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    for indent in ("", " +"):
        found = [number for number, line in lines if re.match(rf"{indent}(def|class) {name}\b", line)]
        if found:
            (only,) = found
            return only
    raise LookupError(f"{path} defines no {name}")


def with_lines(page: Path, text: str) -> str:
    """The page with links to lines that lead to the definitions they name."""

    def point(match: re.Match[str]) -> str:
        name, path, _ = match.groups()
        return f"[`{name}`]({path}#L{defined_at(page.parent / path, name)})"

    return LINE_LINK.sub(point, text)


def with_tables(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- options: {name} -->\n\n{options_table(cli.COMMANDS[name].config)}\n\n<!-- end -->"

    return re.sub(r"<!-- options: (\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_options_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text), "run: python tests/test_docs.py"


def test_links_to_lines_lead_to_what_they_name() -> None:
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    assert len(LINE_LINK.findall(text)) > 15
    assert text == with_lines(page, text), "run: python tests/test_docs.py"


def test_the_training_step_is_two_clicks_from_the_readme() -> None:
    assert "(docs/architecture.md)" in PAGES[0].read_text(encoding="utf-8")
    linked = {name for name, _, _ in LINE_LINK.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))}
    assert "train_step" in linked


def test_every_command_has_its_table() -> None:
    tables = re.findall(r"<!-- options: (\w+) -->", "".join(page.read_text(encoding="utf-8") for page in PAGES))
    assert sorted(tables) == sorted(set(cli.COMMANDS) - {"demo"})


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_the_commands_shown_are_accepted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Config] = []
    module = types.SimpleNamespace(run=asked.append)
    monkeypatch.setattr("biencoder.cli.importlib", types.SimpleNamespace(import_module=lambda _: module))
    words = shlex.split(line.partition("biencoder ")[2])
    assert cli.main(words) == 0
    assert len(asked) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {
        word for c in cli.COMMANDS.values() for field in dataclasses.fields(c.config) for word in cli.flags_of(field)
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= known | {cli.COMPLETION} | OTHERS_FLAGS
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_shown_is_python_and_imports_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block.text, page.name, "exec")
        for names in re.findall(r"^from biencoder import (.+)$", block.text, re.MULTILINE):
            assert set(names.split(", ")) <= set(biencoder.__all__)


def test_every_page_is_linked_from_the_readme() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert all(f"(docs/{page.name})" in readme for page in PAGES[1:])


def test_continuous_integration_sets_up_as_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (test_command,) = (line for block in blocks(PAGES[0], "sh") for line in block.text.splitlines() if "pytest" in line)
    assert all(step in script.splitlines() for step in test_command.split(" && "))


def test_the_changelog_knows_the_version() -> None:
    assert f"## {biencoder.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    for document in PAGES:
        text = with_lines(document, with_tables(document.read_text(encoding="utf-8")))
        document.write_text(text, encoding="utf-8")
