import json
import textwrap
from pathlib import Path

import pytest

from biencoder.demo import code_search
from biencoder.demo.code_search import (
    CodeSearch,
    Function,
    build,
    installed_sources,
    read_package,
    read_source,
    split,
    summarise,
    write,
)
from biencoder.errors import UserError

SOURCE = '''
raise SystemExit("this module must never run")

def flatten(rows, depth=1):
    """Join nested lists into one flat list.

    More words that no passage may hold.
    """
    # keep the order
    flat = []
    for row in rows:
        flat.extend(row)
    return flat

class Box:
    """A box."""

    async def open_slowly(self, seconds: float) -> bool:
        r"""Open the box after waiting a while."""
        await sleep(seconds)
        self.is_open = True
        return True

    def _hidden(self):
        """Count everything that nobody can see here."""
        total = sum(self.things)
        return total

def stub(value):
    """Turn the value into something else entirely."""
    ...

def told(path):
    """Read all lines of one text file."""
    print("Read all lines", "of one text file")
    lines = open(path).readlines()
    return lines

def undocumented(value):
    first = value
    return first

def one_line(value): """Return the value as it was given."""; x = value; return x
'''


def function(name: str, summary: str = "", body_hash: str = "") -> Function:
    return Function(name, summary or f"Does what {name} is for", f"def {name}(): ...", body_hash or name)


def many(package: str, count: int) -> list[Function]:
    words = [a + b + c for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij"]
    return [function(f"{package}.module:{word}", f"Does {package} work on {word}") for word in words[:count]]


class TestSummarise:
    @pytest.mark.parametrize(
        ("docstring", "summary"),
        [
            ("Join nested lists into one.", "Join nested lists into one"),
            ("Join nested lists\n    into one. And then more.\n\n    Args: x", "Join nested lists into one"),
            ("Convert a :class:`~pkg.Frame` to ``dict`` rows.", "Convert a pkg.Frame to dict rows"),
            ("Compute *all* of the x**2 + y**2 values", "Compute all of the x**2 + y**2 values"),
            ("Load a file, e.g. one of a zip. Then stop.", "Load a file, e.g. one of a zip"),
        ],
    )
    def test_takes_the_first_sentence_without_markup(self, docstring: str, summary: str) -> None:
        assert summarise(docstring) == summary

    @pytest.mark.parametrize(
        "docstring",
        [
            "",
            "Return it.",
            "See the documentation of the other function.",
            "Deprecated: use the other function instead.",
            "add(input, other, *, out=None) -> Tensor",
            ":param path: the file that should be read",
            "Returns: the number of rows of it",
            ">>> flatten the list of all rows",
            "Berechnet die Größe aller Zeilen der Datei",
            "word " * 40,
            "many many many many many",
        ],
    )
    def test_refuses_what_is_no_query(self, docstring: str) -> None:
        assert summarise(docstring) == ""


class TestReadSource:
    def test_finds_documented_public_functions_and_methods(self) -> None:
        assert [(f.name, f.summary) for f in read_source(SOURCE, "pkg.mod")] == [
            ("pkg.mod:flatten", "Join nested lists into one flat list"),
            ("pkg.mod:Box.open_slowly", "Open the box after waiting a while"),
        ]

    def test_passage_is_signature_and_source_without_the_docstring(self) -> None:
        flatten, open_slowly = read_source(SOURCE, "pkg.mod")
        assert flatten.code == textwrap.dedent(
            """\
            def flatten(rows, depth=1):
                # keep the order
                flat = []
                for row in rows:
                    flat.extend(row)
                return flat"""
        )
        assert open_slowly.code.startswith("async def open_slowly(self, seconds: float) -> bool:\n    await")

    def test_cuts_long_passages_at_a_line(self) -> None:
        body = "\n".join(f"    value_{i} = {i}" for i in range(500))
        (found,) = read_source(f'def long(x):\n    """Assign a great many small values."""\n{body}\n', "m")
        assert 0.9 * code_search.PASSAGE_CHARACTERS < len(found.code) <= code_search.PASSAGE_CHARACTERS
        assert found.code.splitlines()[-1] == f"    value_{len(found.code.splitlines()) - 2} = " + str(
            len(found.code.splitlines()) - 2
        )

    @pytest.mark.parametrize("source", ["def broken(:\n", "x = 1\0", "(" * 1_000, ""])
    def test_skips_what_cannot_be_parsed(self, source: str) -> None:
        assert read_source(source, "m") == []

    def test_form_feeds_are_no_lines(self) -> None:
        (found,) = read_source(
            '\x0c\ndef a(x):\n    """Double the value that was given."""\n    y = 2 * x\n    return y\n', "m"
        )
        assert found.code == "def a(x):\n    y = 2 * x\n    return y"

    def test_equal_statements_have_equal_hashes_whatever_the_layout(self) -> None:
        first = 'def a(x):\n    """Double the value that was given."""\n    y = x * 2\n    return y\n'
        second = (
            'def b(x):\n    """Twice the given number, again."""\n    # twice\n    y = (x\n        * 2)\n    return y\n'
        )
        third = first.replace("* 2", "* 3")
        hashes = [read_source(source, "m")[0].body_hash for source in (first, second, third)]
        assert hashes[0] == hashes[1] != hashes[2]


class TestInstalledSources:
    def test_lists_sources_of_a_distribution_without_tests_and_vendored_copies(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = ["acme_demo/core.py", "acme_demo/deep/er.py", "acme_single.py"]
        left = ["acme_demo/tests/core.py", "acme_demo/test_core.py", "acme_demo/_vendor/copy.py", "acme_demo/data.txt"]
        info = tmp_path / "acme_demo-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-demo\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in [*kept, *left, "../../bin/acme.py"]))
        monkeypatch.syspath_prepend(str(tmp_path))

        sources = installed_sources()

        assert sources["acme_demo"] == {name: tmp_path / name for name in kept[:2]}
        assert sources["acme_single"] == {"acme_single.py": tmp_path / "acme_single.py"}
        assert "acme" not in {package for package in sources if package.startswith(".")}

    def test_a_listed_file_that_is_gone_or_no_utf8_is_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "latin.py").write_bytes(b'"""caf\xe9"""')
        (tmp_path / "good.py").write_text(SOURCE)
        files = {f"pkg/{name}.py": tmp_path / f"{name}.py" for name in ("gone", "latin", "good")}
        assert {f.name for f in read_package(files)} == {"pkg.good:flatten", "pkg.good:Box.open_slowly"}


class TestSplit:
    def test_no_package_stands_on_both_sides(self) -> None:
        functions = [f for i in range(10) for f in many(f"pkg{i}", 50)]
        data = split(functions, train=1_000, corpus=120, queries=40, seed=1)
        assert not {f.package for f in data.train} & {f.package for f in data.corpus}
        assert len(data.corpus) == 120
        assert data.queries == data.corpus[:40]
        assert len(data.train) == 500 - 3 * 50  # three packages fill the corpus; the rest of the third is left out

    def test_depends_on_the_functions_and_the_seed_alone(self) -> None:
        functions = [f for i in range(10) for f in many(f"pkg{i}", 30)]
        sizes = {"train": 100, "corpus": 80, "queries": 20}
        data = split(functions, **sizes, seed=1)
        assert split(functions[::-1], **sizes, seed=1) == data
        assert split(functions, **sizes, seed=2) != data

    def test_holds_out_at_most_a_third(self) -> None:
        functions = many("huge", 500) + many("small", 40) + many("other", 30)
        data = split(functions, train=1_000, corpus=1_000, queries=100, seed=0)
        assert {f.package for f in data.train} == {"huge"}
        assert len(data.corpus) == 70

    def test_copies_of_held_out_functions_are_not_trained_on(self) -> None:
        functions = [f for i in range(6) for f in many(f"pkg{i}", 30)]
        held_out = split(functions, train=1_000, corpus=30, queries=30, seed=3).corpus[0]
        train_package = split(functions, train=1_000, corpus=30, queries=30, seed=3).train[0].package
        copies = [
            function(f"{train_package}.copied:same_words", held_out.summary.upper() + " ..."),
            function(f"{train_package}.copied:same_body", body_hash=held_out.body_hash),
        ]
        data = split([*copies, *functions], train=1_000, corpus=30, queries=30, seed=3)
        assert held_out in data.corpus
        assert not set(copies) & {*data.train, *data.corpus}

    def test_a_summary_asks_for_one_function_only(self) -> None:
        functions = [f for i in range(6) for f in many(f"pkg{i}", 30)]
        twins = [function(f"pkg{i}.twin:f", "Give the very same thing back") for i in range(6)]
        data = split([*functions, *twins], train=1_000, corpus=60, queries=60, seed=0)
        assert sum(f.summary == twins[0].summary for f in (*data.train, *data.corpus)) <= 1

    def test_names_are_unique(self) -> None:
        functions = [f for i in range(6) for f in many("pkg" + "abcdef"[i], 30)]
        setters = [function(f.name, f"Set anew {f.summary}", f"set {f.name}") for f in functions]
        data = split([*functions, *setters], train=1_000, corpus=60, queries=60, seed=0)
        names = [f.name for f in (*data.train, *data.corpus)]
        assert len(names) == len(set(names)) == 180


class TestWrite:
    def test_files_hold_the_pairs_and_the_judgements(self, tmp_path: Path) -> None:
        functions = [f for i in range(6) for f in many(f"pkg{i}", 30)]
        data = split(functions, train=50, corpus=40, queries=10, seed=0)
        files = write(data, tmp_path)
        rows = [json.loads(line) for line in files.train.read_text().splitlines()]
        assert [(row["query"], row["pos"]) for row in rows] == [(f.summary, [f.code]) for f in data.train]
        corpus = [json.loads(line) for line in (files.held_out / "corpus.jsonl").read_text().splitlines()]
        assert {row["_id"]: row["text"] for row in corpus} == {f.name: f.code for f in data.corpus}
        queries = [json.loads(line) for line in (files.held_out / "queries.jsonl").read_text().splitlines()]
        assert {row["_id"]: row["text"] for row in queries} == {f.name: f.summary for f in data.queries}
        judged = (files.held_out / "qrels" / "test.tsv").read_text().splitlines()
        assert judged == ["query-id\tcorpus-id\tscore", *(f"{f.name}\t{f.name}\t1" for f in data.queries)]

    def test_the_package_reads_them(self, tmp_path: Path) -> None:
        from biencoder.data.files.beir import load_collection
        from biencoder.data.table import ExampleTable

        data = split([f for i in range(6) for f in many(f"pkg{i}", 30)], train=50, corpus=40, queries=10, seed=0)
        files = write(data, tmp_path)
        assert len(ExampleTable.from_files([files.train])) == 50
        collection = load_collection(files.held_out, None)
        assert (len(collection.corpus_ids), len(collection.query_ids), len(collection.qrels)) == (40, 10, 10)


@pytest.fixture(scope="module")
def built() -> CodeSearch:
    """The data set of this very environment, as the demo builds it, of a part of the sources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_search, "BYTES_PER_PACKAGE", 600_000)
        return build(train=2_000, corpus=1_500, queries=500)


class TestBuild:
    def test_any_environment_that_can_run_biencoder_has_enough(self, built: CodeSearch) -> None:
        assert len(built.train) >= 1_000
        assert len(built.queries) >= 300
        assert len({f.package for f in built.train}) >= 8
        assert not {f.package for f in built.train} & set(built.held_out_packages)

    def test_no_passage_holds_its_query(self, built: CodeSearch) -> None:
        for found in (*built.train, *built.corpus):
            assert found.summary.casefold() not in " ".join(found.code.split()).casefold()
            assert found.code.startswith(("def ", "async def "))
            assert len(found.code) <= code_search.PASSAGE_CHARACTERS

    def test_no_query_or_passage_of_the_held_out_side_is_trained_on(self, built: CodeSearch) -> None:
        assert not {f.summary for f in built.train} & {f.summary for f in built.corpus}
        assert not {f.code for f in built.train} & {f.code for f in built.corpus}

    def test_says_what_is_missing_when_too_little_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(code_search, "installed_sources", dict)
        with pytest.raises(UserError, match=r"only 0 documented functions .* pip install"):
            build(train=100, corpus=100, queries=100)
