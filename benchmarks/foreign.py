"""Collections that no run here trains on, made of packages on this machine: query and text are different fields of one.

- ``code``: a docstring's summary -> the source of the function (`biencoder.demo.code_search`)
- ``debian``: a package's one-line synopsis -> its long description; needs ``apt-get -o Acquire::Languages=en update``
- ``man``: the NAME line of a manual page -> its DESCRIPTION; needs manual pages in /usr/share/man
- ``python``: the first sentence about a function -> the rest of its description; needs ``apt-get install python3-doc``
- ``wordnet``: the definition of a word -> the words that mean it, with examples; needs ``apt-get install wordnet-base``

python -m benchmarks.foreign --output-dir build/foreign
"""

import argparse
import gzip
import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from biencoder.demo import code_search

DOCUMENTS, QUERIES = 1200, 400
LEAST, MOST = 80, 1000  # characters of a text
LARGEST_FAMILY = 15  # pages whose names begin with the same word
APT_LISTS = Path("/var/lib/apt/lists")
MANUAL = Path("/usr/share/man")
WORDNET = Path("/usr/share/wordnet")
PYTHON_DOCS = Path("/usr/share/doc")

_SENTENCE_END = re.compile(r"(?<=[^.\s]{2})\.(?=\s|$)")
_ROLE = re.compile(r":[\w:+-]+:`~?!?([^`<]*?)(?:\s*<[^`]*>)?`")
_FONT = re.compile(r"\\f(?:\[\w*\]|\(..|.)|\\[,/&|^]")

Pair = tuple[str, str, str]  # id, query, text


def debian() -> Iterator[Pair]:
    """Packages of Debian: synopsis, long description."""
    for path in sorted(APT_LISTS.glob("*_dists_*_i18n_Translation-en*")):
        text = subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True
        ).stdout
        for entry in text.decode("utf-8", "replace").split("\n\n"):
            fields = re.match(r"Package: (\S+)\n(?:.*\n)*?Description-en: (.*)\n((?: .*\n?)+)", entry)
            if fields:
                name, synopsis, description = fields.groups()
                yield name, synopsis, description.replace("\n .\n", "\n").strip()


def man() -> Iterator[Pair]:
    """Manual pages: what NAME says behind the dash, DESCRIPTION."""
    for path in sorted(page for section in "1578" for page in (MANUAL / f"man{section}").glob("*.gz")):
        if path.is_symlink():
            continue
        sections = _sections(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
        _, dash, summary = sections.get("NAME", "").partition(" - ")
        if dash and "DESCRIPTION" in sections:
            yield path.name.removesuffix(".gz"), summary, sections["DESCRIPTION"]


def _sections(troff: str) -> dict[str, str]:
    """Headings and plain texts of a manual page."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in troff.splitlines():
        heading = re.match(r'\.S[Hh] "?(.*?)"?\s*$', line)
        if heading:
            lines = found.setdefault(heading[1].upper(), [])
        elif line.startswith((".", "'")):
            macro, _, rest = line.partition(" ")
            if macro in {".B", ".I", ".BR", ".IR", ".BI", ".RB", ".RI", ".IB", ".Nd", ".Nm", ".Ar", ".Fl"}:
                lines.append(("- " if macro == ".Nd" else "") + rest.replace('"', ""))
        else:
            lines.append(line)
    plain = {
        heading: " ".join(_FONT.sub("", " ".join(lines)).replace("\\-", "-").split())
        for heading, lines in found.items()
    }
    return {heading: text.replace("\\(aq", "'").replace("\\e", "\\") for heading, text in plain.items()}


def python() -> Iterator[Pair]:
    """Functions of Python's library reference: first sentence, rest of the description."""
    for path in sorted(PYTHON_DOCS.glob("python3*/html/_sources/library/*.rst.txt")):
        blocks = re.split(
            r"^(?=\.\. (?:function|method|class)::)", path.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        for block in blocks[1:]:
            head, _, rest = block.partition("\n")
            said = _description(rest)
            first, *_ = _SENTENCE_END.split(said, maxsplit=1)
            yield f"{path.name}:{head[3:60].strip()}", first, said[len(first) :].lstrip(". ")


def _description(block: str) -> str:
    """The plain text that stands indented below a directive, without directives and fields of its own."""
    lines = itertools.takewhile(lambda line: not line.strip() or line.startswith(" "), block.split("\n"))
    paragraphs = "\n".join(line.strip() for line in lines).split("\n\n")
    prose = " ".join(" ".join(part for part in paragraphs if not part.lstrip().startswith((".. ", ":"))).split())
    return _ROLE.sub(r"\1", prose).replace("*", "").replace("``", "")


def wordnet() -> Iterator[Pair]:
    """Synsets of WordNet: definition, words and examples."""
    for path in sorted(WORDNET.glob("data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            data, _, gloss = line.partition(" | ")
            offset, _, _, count, *words = data.split(" ")
            definition, *examples = gloss.strip().split('; "')
            lemmas = [words[2 * i].replace("_", " ") for i in range(int(count, 16))]
            if examples:
                yield (
                    f"{path.suffix[1:]}{offset}",
                    definition,
                    f"{', '.join(lemmas)}. {' '.join(examples)}".replace('"', ""),
                )


SOURCES: dict[str, Callable[[], Iterator[Pair]]] = {"debian": debian, "man": man, "python": python, "wordnet": wordnet}
CODE = "code"


def chosen(pairs: Iterator[Pair]) -> list[Pair]:
    """Pairs of which no text or query is another's too, in an order that looks random and is always the same."""
    kept: list[Pair] = []
    seen: set[str] = set()
    families: Counter[str] = Counter()
    for name, query, text in sorted(pairs, key=lambda pair: blake2b(pair[0].encode(), digest_size=8).digest()):
        text = " ".join(text.split())[:MOST]
        family = re.split(r"[-_.]", name)[0]
        keys = {query.casefold(), text[:LEAST].casefold()}
        if len(text) < LEAST or len(query.split()) < 3 or len(query) > 200 or not seen.isdisjoint(keys):
            continue
        seen |= keys
        families[family] += 1
        if families[family] <= LARGEST_FAMILY and query.casefold() not in text.casefold():
            kept.append((name, query, text))
    return kept


def write(name: str, folder: Path) -> Path:
    """A BEIR folder of one source, made unless it is there."""
    target = folder / name
    if (target / "qrels" / "test.tsv").exists():
        return target
    if name == CODE:
        data = code_search.build(train=code_search.MIN_TRAIN, corpus=DOCUMENTS, queries=QUERIES)
        code_search.write(data, folder / "made").held_out.rename(target)
        return target
    pairs = chosen(SOURCES[name]())[:DOCUMENTS]
    if len(pairs) < 2 * QUERIES:
        raise SystemExit(f"{name}: only {len(pairs)} texts on this machine. {__doc__}")
    documents = {key: text for key, _, text in pairs}
    code_search.write_collection(target, documents, {key: query for key, query, _ in pairs[:QUERIES]})
    return target


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--collections", nargs="+", choices=[CODE, *SOURCES], default=[CODE, *SOURCES])
    asked = parser.parse_args()
    for name in asked.collections:
        print(write(name, asked.output_dir))


if __name__ == "__main__":
    main()
