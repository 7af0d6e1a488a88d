"""Put what the tests have shown of each trainer (docs/trainers.json) into docs/trainers.md; --check compares them."""

import json
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("trainers.md")
RESULTS = Path(__file__).with_name("trainers.json")
BEGIN, END = "<!-- cells: made by docs/make_trainers.py -->\n", "<!-- end of cells -->\n"
TRAINERS = {"trl": "TRL", "axolotl": "axolotl", "llamafactory": "LLaMA-Factory"}
MARKS = {"passed": "yes", "failed": "**fails**", "skipped": "not run"}
RESUMED = "2 processes, resume in the middle of an epoch"
NOTED = {("axolotl", RESUMED), ("llamafactory", RESUMED)}
NOTE = """\
¹ On CPUs, with these versions, only in a program that first tells torch what the devices `cpu:0` and `cpu:1` are, as
the tests do:
`torch.serialization.register_package(0, lambda _: None, lambda kept, at: kept if at.startswith("cpu:") else None)`.
"""


def table() -> str:
    """The results as a table: trainers as columns, cells as rows."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    cells = list(dict.fromkeys(cell for name in TRAINERS for cell in found.get(name, {}).get("cells", {})))
    lines = [["", *TRAINERS.values()], ["---"] * (1 + len(TRAINERS))]
    for cell in cells:
        results = {name: found.get(name, {}).get("cells", {}).get(cell) for name in TRAINERS}
        noted = {name for name, result in results.items() if (name, cell) in NOTED and result == "passed"}
        lines.append([cell, *(MARKS.get(result, "–") + "¹" * (name in noted) for name, result in results.items())])
    versions = []
    for name, title in TRAINERS.items():
        if name in found:
            known = found[name]["versions"]
            others = ", ".join(f"{package} {number}" for package, number in known.items() if package != name)
            versions.append(f"{title} {known.get(name, '')} ({others})")
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nShown with {'; '.join(versions)}.\n\n{NOTE}"


def page() -> str:
    """The page as it should be."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"docs/trainers.md: no lines {BEGIN.strip()} and {END.strip()}, between which the table goes")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/trainers.md is stale: make docs")
    PAGE.write_text(page(), encoding="utf-8")
