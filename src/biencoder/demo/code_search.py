"""A code-search data set from the installed Python packages: docstring summary -> source without the docstring.

The idea is CodeSearchNet's (Husain et al. 2019, https://arxiv.org/abs/1909.09436): a documented function
is a query with its answer, and nobody has to label it. Sources are only parsed, never imported or executed. The data
set depends only on the installed packages and the seed.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from biencoder.errors import UserError
from biencoder.files import atomic_write

# Tests document themselves, and vendored copies would be on both sides of the split.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "_vendored", "vendor", "vendored", "extern", "external", "externals",
     "_external", "third_party", "benchmarks", "examples"}
)  # fmt: skip
BYTES_PER_PACKAGE = 2_500_000  # parsing takes most of the time: about 4 MB a second on a slow core
BYTES_PER_FILE = 250_000  # larger files are generated tables
FUNCTIONS_PER_PACKAGE = 400  # so that no single package dominates the training data
FUNCTIONS_PER_FILE = 12
PASSAGE_CHARACTERS = 1_000
MIN_TRAIN, MIN_QUERIES = 200, 50  # with fewer, the figures would mean nothing

_BOILERPLATE = re.compile(
    r"(see |alias |deprecated|todo|fixme|same as |wrapper |helper |internal|override|overrid|refer to |args?:|returns:"
    r"|parameters:|copied from|constructor|getter|setter|not implemented|\w+\(|\W)",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"->|>>>|::|\||[{}<>]|--")
_ROLE = re.compile(r":[\w:.+-]+:`~?\.?([^`<]*?)(?:\s*<[^`]*>)?`")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=\w)([^*]*)(?<=\w)\1(?!\w)")
_SENTENCE_END = re.compile(r"(?<=[^.\s]{2})[.:](?=\s|$)")
_WORD = re.compile(r"[A-Za-z]{2,}")
_TOKEN = re.compile(r"\w+")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Function:
    """One documented function of an installed package.

    Attributes:
        name: ``package.module:Class.function``.
        summary: the first sentence of its docstring, markup removed: the query.
        code: signature and source without the docstring: the passage.
        body_hash: equal for functions with equal statements; comments and layout do not matter.
    """

    name: str
    summary: str
    code: str
    body_hash: str

    @property
    def package(self) -> str:
        """The top-level package; training and held-out functions never share one."""
        return self.name.partition(":")[0].partition(".")[0]


@dataclass(frozen=True, slots=True)
class CodeSearch:
    """The data set: pairs to train on, and a corpus of other packages with queries for some of its functions."""

    train: tuple[Function, ...]
    corpus: tuple[Function, ...]
    queries: tuple[Function, ...]

    @property
    def held_out_packages(self) -> tuple[str, ...]:
        """Packages of the corpus, sorted."""
        return tuple(sorted({function.package for function in self.corpus}))


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Where `write` put things: the training file and the BEIR folder."""

    train: Path
    held_out: Path


def build(*, train: int, corpus: int, queries: int, seed: int = 42) -> CodeSearch:
    """Read the installed packages and split their functions by package.

    Args:
        train: at most this many pairs to train on.
        corpus: at most this many held-out functions (the passages of the evaluation).
        queries: at most this many held-out functions whose summary is a query.
        seed: decides which packages are held out and which functions are taken.

    Raises:
        UserError: too few documented functions are installed.
    """
    functions = [function for package in installed_sources().values() for function in read_package(package, seed)]
    data = split(functions, train=train, corpus=corpus, queries=queries, seed=seed)
    if len(data.train) < MIN_TRAIN or len(data.queries) < MIN_QUERIES:
        raise UserError(
            f"your installed packages give only {len(data.train)} documented functions to train on and "
            f"{len(data.queries)} to measure with (the demo needs {MIN_TRAIN} and {MIN_QUERIES}); "
            "install more, for example: pip install sympy networkx rich"
        )
    return data


def installed_sources() -> dict[str, dict[str, Path]]:
    """Source files of every installed distribution, as ``{package: {"package/module.py": path}}``, tests left out.

    biencoder is left out too: its functions change with each version, and so would the figures of the demo.
    """
    sources: dict[str, dict[str, Path]] = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            parts = file.parts
            if file.suffix == ".py" and ".." not in parts and not _is_skipped(file):
                package = parts[0].removesuffix(".py")
                sources.setdefault(package, {}).setdefault(file.as_posix(), Path(str(distribution.locate_file(file))))
    sources.pop("biencoder", None)
    return dict(sorted(sources.items()))


def _is_skipped(file: PurePosixPath) -> bool:
    name = file.stem
    return not SKIPPED_FOLDERS.isdisjoint(file.parts[:-1]) or name.startswith("test_") or name.endswith("_test")


def read_package(files: dict[str, Path], seed: int = 42) -> list[Function]:
    """Documented functions of one package, from as many files as `BYTES_PER_PACKAGE` allows, in seeded order."""
    functions: list[Function] = []
    budget = BYTES_PER_PACKAGE
    for relative in sorted(files, key=lambda name: _shuffle_key(name, seed)):
        try:
            source = files[relative].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if '"""' not in source or len(source) > BYTES_PER_FILE:
            continue
        found = sorted(read_source(source, _module_name(relative)), key=lambda f: _shuffle_key(f.name, seed))
        functions += found[:FUNCTIONS_PER_FILE]
        budget -= len(source)
        if budget < 0 or len(functions) >= FUNCTIONS_PER_PACKAGE:
            break
    return functions[:FUNCTIONS_PER_PACKAGE]


def _module_name(relative: str) -> str:
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _shuffle_key(text: str, seed: int) -> bytes:
    """A sort key that looks random and is the same everywhere. Adding an item does not reorder the others."""
    return hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()


def read_source(source: str, module: str) -> list[Function]:
    """Documented public functions and methods of one file; none if this Python cannot parse the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = source.split("\n")  # like the parser; splitlines() also breaks at form feeds
    functions = []
    for qualified, node in _definitions(tree, ""):
        summary = summarise(ast.get_docstring(node, clean=False) or "")
        code = _code_without_docstring(node, lines) if summary else None
        if code and not _tells(code, summary):
            body = "\n".join(ast.dump(statement) for statement in node.body[1:])
            digest = hashlib.blake2b(body.encode(), digest_size=8).hexdigest()
            functions.append(Function(f"{module}:{qualified}", summary, code, digest))
    return functions


def _definitions(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, FunctionNode) and not node.name.startswith(("_", "test")):
            yield prefix + node.name, node


def summarise(docstring: str) -> str:
    """First sentence of a docstring without markup, or "" if it says too little or too much for a query."""
    paragraph = inspect.cleandoc(docstring).partition("\n\n")[0]
    text = " ".join(_EMPHASIS.sub(r"\2", _ROLE.sub(r"\1", paragraph).replace("`", "")).split())
    text = _SENTENCE_END.split(text, maxsplit=1)[0].strip(" .:")
    words = _WORD.findall(text)
    telling = len(set(words)) >= 4 and len(words) <= 30 and len(text) <= 200 and text.isascii()
    return text if telling and not _BOILERPLATE.match(text) and not _MARKUP.search(text) else ""


def _code_without_docstring(node: FunctionNode, lines: Sequence[str]) -> str | None:
    """Signature and body, dedented and cut to whole lines; None if it is too short to search for."""
    docstring, rest = node.body[0], node.body[1:]
    nested = sum(1 for statement in rest for child in ast.walk(statement) if isinstance(child, ast.stmt))
    if nested < 2 or docstring.lineno == node.lineno or rest[0].lineno <= (docstring.end_lineno or docstring.lineno):
        return None
    kept = [*lines[node.lineno - 1 : docstring.lineno - 1], *lines[docstring.end_lineno : node.end_lineno]]
    code, size = [], 0
    for line in kept:
        if line.strip():
            indent = len(line) - len(line.lstrip())
            code.append(line[min(indent, node.col_offset) :].rstrip())
            size += len(code[-1]) + 1
        if size > PASSAGE_CHARACTERS:
            return "\n".join(code[:-1])
    return "\n".join(code)


def _tells(code: str, summary: str) -> bool:
    """Whether the code repeats the summary (in a comment, an error message or an inner docstring)."""
    return "".join(_TOKEN.findall(summary)).casefold() in "".join(_TOKEN.findall(code)).casefold()


def split(functions: Sequence[Function], *, train: int, corpus: int, queries: int, seed: int) -> CodeSearch:
    """Hold out whole packages, in seeded order, until the corpus is full or a third of the functions is held out.

    Of functions with the same name, summary or body, only the first stays, and held-out functions come first. So no
    copy of a held-out function is in the training data, and no query has two right answers.
    """
    sizes = Counter(function.package for function in functions)
    held_out: set[str] = set()
    taken = 0
    for package in sorted(sizes, key=lambda name: _shuffle_key(name, seed)):
        if taken < corpus and taken + sizes[package] <= len(functions) / 3:
            held_out.add(package)
            taken += sizes[package]
    shuffled = sorted(functions, key=lambda f: _shuffle_key(f.name, seed))
    unique = _without_copies(sorted(shuffled, key=lambda f: f.package not in held_out))
    documents = [function for function in unique if function.package in held_out][:corpus]
    pairs = [function for function in unique if function.package not in held_out][:train]
    return CodeSearch(train=tuple(pairs), corpus=tuple(documents), queries=tuple(documents[:queries]))


def _without_copies(functions: Iterable[Function]) -> list[Function]:
    seen: set[str] = set()
    kept = []
    for function in functions:
        summary = " ".join(_TOKEN.findall(function.summary.casefold()))
        # A property's getter and setter share their name.
        keys = {f"summary {summary}", f"body {function.body_hash}", f"name {function.name}"}
        if seen.isdisjoint(keys):
            kept.append(function)
        seen |= keys
    return kept


def write(data: CodeSearch, folder: Path) -> DataFiles:
    """Write ``train.jsonl`` and the BEIR folder ``held-out/`` (corpus, queries, qrels/test.tsv) into ``folder``."""
    files = DataFiles(train=folder / "train.jsonl", held_out=folder / "held-out")
    _write_lines(files.train, ({"query": f.summary, "pos": [f.code], "neg": []} for f in data.train))
    documents, queries = {f.name: f.code for f in data.corpus}, {f.name: f.summary for f in data.queries}
    write_collection(files.held_out, documents, queries)
    return files


def write_collection(folder: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> None:
    """Write a BEIR folder of texts by id; the answer to a query is the document with its id."""
    _write_lines(folder / "corpus.jsonl", ({"_id": key, "title": "", "text": text} for key, text in documents.items()))
    _write_lines(folder / "queries.jsonl", ({"_id": key, "text": text} for key, text in queries.items()))
    with atomic_write(folder / "qrels" / "test.tsv") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{key}\t{key}\t1\n" for key in queries)


def _write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with atomic_write(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
