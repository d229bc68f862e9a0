"""Make the collection that biencoder checks every tuned model on, from WordNet 3.0 (``apt-get install wordnet-base``).

Query: a definition. Passage: the words that it defines, with examples. None of them is in `benchmarks.foreign`.

python -m benchmarks.general_english
"""

import gzip
import json

from benchmarks.foreign import chosen, wordnet
from biencoder.data.evaluation.general_english import FILE

PASSAGES = 1500


def main() -> None:
    """Write the file anew; the same WordNet gives the same bytes."""
    rows = [{"query": query, "text": text} for _, query, text in chosen(wordnet())[-PASSAGES:]]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    FILE.write_bytes(gzip.compress(lines.encode(), mtime=0))
    print(f"{FILE}: {len(rows):,} passages, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
