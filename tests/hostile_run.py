"""A training run of seconds on texts that would break a page, a terminal or a table."""

import json
from pathlib import Path

from runs import small_run, write_pairs

from biencoder.training.run import train

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</bdi></td></table></svg><img src=x onerror=alert(1)>",
    '\'" onmouseover="alert(1) {{ 7 * 7 }} {% raw %} $\\frac{1}{2}$ &lt;&amp;',
    "\u202eright to left\u202c \u2067isolate \u200f mark",
    "x" * 10_000,
    "W\u0301\u0302\u0303\u0304" * 3_000,
    "\x00\x1b[2J\x9b\ufeff\ufffe \ud800 \U000e0041",
    "العربية עברית 中文字符 ไม่มีช่องว่าง " * 400,
    "<!-- " + "<![CDATA[" + "<style>*{display:none}</style>" + "<base href=//evil>",
    "\n\n\n\t\t" + "  spaces  " * 50,
)


def hostile_run(folder: Path) -> Path:
    """The output folder of the run, whose name is hostile too."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = write_pairs(folder / "pairs.jsonl")
    data = folder / "<script>pairs \u202e.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number, line in enumerate(pairs.read_text().splitlines()):
            row = json.loads(line)
            bad = HOSTILE[number % len(HOSTILE)]
            row["query"] += f" {bad}"
            row["pos"] = [f"{row['pos'][0]} {bad}"]
            file.write(json.dumps(row) + "\n")
    name = "out <img src=x> \u202e" + "n" * 150
    train(small_run(folder, train_data=(data,), output_dir=folder / name, on_bad_row="skip", query_prompt=HOSTILE[2]))
    return folder / name
