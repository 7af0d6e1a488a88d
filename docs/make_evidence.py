"""Put what benchmarks have found (benchmarks/results) into the tables of docs/evidence.md; --check compares them."""

import json
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("evidence.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SETS = {
    "math": "MATH, train: subjects and levels alike",
    "math-cp": "MATH, Counting & Probability: all",
    "apps": "APPS-150 (code): introductory, interview, competition",
    "mnli": "MNLI (inference): texts as they are",
    "mnli-chat": "MNLI as a chat",
    "gsm8k": "GSM8K: its level is its number of steps",
    "dialogue": "GPTeacher roleplay (dialogue): no levels",
}
MEASURES = {"p3 by line": "p3", "nll": "nll", "ifd": "ifd", "length": "length"}
RULE = "line"
RULES = ("p3 by line", "p3 by sentence", "p3 by token", "p3 by whole")


def found() -> dict[str, dict]:
    """Name of a data set → its result, of those that there are."""
    files = {name: RESULTS / "agreement" / f"{name}.json" for name in SETS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def agreement() -> str:
    """Spearman's ρ of each difficulty with the level, and given length."""
    lines = [["data", "rows", "measure", "ρ with the level", "ρ given length", "τ with the level", "p of no trend"]]
    for name, one in found().items():
        part = one["difficulties"]
        all_of = {entry["measure"]: entry for entry in part.get("agreement", []) if entry["group"] is None}
        for place, (measure, title) in enumerate((key, MEASURES[key]) for key in MEASURES if key in all_of):
            entry = all_of[measure]
            head = [SETS[name], f"{entry['rows']:,}"] if not place else ["", ""]
            values = (interval(entry.get(key)) for key in ("spearman", "given_length", "kendall"))
            p = part["trend"][measure]
            lines.append([*head, title, *values, "–" if p is None else f"{p:.1g}"])
    return table(lines)


def groups() -> str:
    """The same of p3 and length by group, where there are any."""
    lines = [["data", "group", "rows", "p3", "p3 given length", "length"]]
    for name, one in found().items():
        entries = [entry for entry in one["difficulties"].get("agreement", []) if entry["group"] is not None]
        names = dict.fromkeys(entry["group"] for entry in entries)
        for place, group in enumerate(names):
            p3, length = (
                next(it for it in entries if it["group"] == group and it["measure"] == measure)
                for measure in ("p3 by line", "length")
            )
            values = (interval(it) for it in (p3["spearman"], p3.get("given_length"), length["spearman"]))
            lines.append([SETS[name].partition(":")[0] if not place else "", group, f"{p3['rows']:,}", *values])
    return table(lines)


def rules() -> str:
    """The same of p3 by the rules that cut actions."""
    agree = ["line and sentence agree", "line and token", "line and whole"]
    lines = [["data", *(rule.removeprefix("p3 by ") for rule in RULES), *agree]]
    for name, one in found().items():
        part = one["rules"]
        all_of = {entry["measure"]: entry for entry in part.get("agreement", []) if entry["group"] is None}
        names = part["between"]["measures"]
        line = part["between"]["spearman"][names.index("p3 by line")]
        same = (number(line[names.index(f"p3 by {rule}")]) for rule in ("sentence", "token", "whole"))
        values = (interval(all_of[rule]["spearman"]) if rule in all_of else "–" for rule in RULES)
        lines.append([SETS[name], *values, *same])
    return table(lines)


def spread() -> str:
    """How difficulties are distributed, and how far they agree with each other and with length."""
    lines = [["data", "p3: 5 %, median, 95 %", "nll", "ρ of p3 with nll", "with ifd", "with length"]]
    for name, one in found().items():
        part = one["difficulties"]
        names = part["between"]["measures"]
        row = part["between"]["spearman"][names.index("p3 by line")]
        quantiles = (part["spread"][key]["quantiles"] for key in ("p3 by line", "nll"))
        shown = (", ".join(number(values[place]) for place in (0, 2, 4)) for values in quantiles)
        lines.append([SETS[name], *shown, *(number(row[names.index(key)]) for key in ("nll", "ifd", "length"))])
    return table(lines)


def stability() -> str:
    """Difficulties of dialogue under policies that learned something else."""
    one = json.loads((RESULTS / "stability-dialogue.json").read_text(encoding="utf-8"))
    lines = [["policy", "p3: 5 %, median, 95 %", *(f"ρ with {it['name']}" for it in one["policies"][:-1])]]
    for place, (it, row) in enumerate(zip(one["policies"], one["spearman"], strict=True)):
        shared = [number(value) if other < place else "" for other, value in enumerate(row[:-1])]
        lines.append([it["name"], ", ".join(map(number, it["quantiles"])), *shared])
    return table(lines)


def selections() -> str:
    """What strategies select of MATH, at an equal budget in rows; and how many rows at one in tokens."""
    one = json.loads((RESULTS / "strategies-math.json").read_text(encoding="utf-8"))
    by_rows, by_tokens = one["compared"]
    heads = ["difficulty", "tokens a row", "Δ subject", "Δ level", "cells hit", "log det / row", "to the nearest"]
    lines = [["strategy", *heads, "in common with p3", "seconds", f"rows of {by_tokens['budget']}"]]
    everything, common = by_rows["all"][0], by_rows["jaccard"][0]["values"][0]
    for it, shared, other in zip(by_rows["selections"], common, by_tokens["selections"], strict=True):
        name = it["strategy"]
        values = [f"{it['difficulty']:.3f}", f"{it['length']:.0f}"]
        values += [f"{value:.0%}" for value in (*it["shift"].values(), it["cells"])]
        values += [f"{it[key]:.3f}".replace("-", "−") for key in ("log_det", "distance")]
        took = by_rows["seconds"][0]["strategies"][name]
        short = other["shortfall"] or "budget" in by_tokens["strategies"][name]
        rows = f"{other['rows']:,}" + (f" (of {other['tokens'] / 1000:,.0f} thousand)" if short else "")
        lines.append([name, *values, f"{shared:.0%}" if name != "p3" else "", f"{took:.1f}", rows])
    about = (
        f"{by_rows['rows']:,} rows, in the mean of difficulty {everything['difficulty']:.3f} and "
        f"{everything['length']:.0f} tokens; budget {by_rows['budget']}; {len(by_rows['selections'])} strategies in "
        f"{by_rows['took']:.0f} s, and by tokens in {by_tokens['took']:.0f} s."
    )
    return f"{about}\n\n{table(lines)}"


def results() -> dict[str, dict]:
    """Name → the trainings of one call."""
    files = sorted(RESULTS.glob("training-*.json"))
    return {file.stem.removeprefix("training-"): json.loads(file.read_text(encoding="utf-8")) for file in files}


def trainings() -> str:
    """What was learned by each strategy."""
    return told([name for name, one in results().items() if "+" not in one["settings"]["strategies"]])


def sweeps() -> str:
    """What p3 learned with other options."""
    return told([name for name, one in results().items() if "+" in one["settings"]["strategies"]])


def told(names: list[str]) -> str:
    """Tables of trainings whose actions are lines."""
    parts = []
    for name, one in results().items():
        trained, settings = one["trained"], one["settings"]
        if name not in names or settings["actions"] != RULE:
            continue
        measures = list(trained["before"])
        first = trained["strategies"][0]["strategy"]
        heads = (part for measure in measures for part in (measure, f"above {first}"))
        lines = [["trained by", *heads, "targets trained", "targets scored", "with prompts"]]
        for arm in trained["strategies"]:
            values = []
            for measure in measures:
                result = arm["results"][measure]
                values += [half(result), "" if arm["strategy"] == first else half(result["difference"])]
            # Of what an epoch's index has train.py takes as many rows as the budget: of full, each row once in all.
            targets = arm["tokens"] * min(1.0, settings["budget"] * settings["epochs"] / arm["rows"])
            costs = (targets, arm["passes"] * trained["targets_a_pass"], arm["tokens_scored"])
            lines.append([arm["strategy"], *values, *(f"{cost:,.0f}" for cost in costs)])
        before = [part for measure in measures for part in (f"{trained['before'][measure]:.4f}", "")]
        lines.append(["*not at all*", *before, "", "", ""])
        seeds = ", ".join(map(str, trained["seeds"]))
        parts.append(
            f"**{name}**: {settings['rows']} rows, {settings['epochs']} epochs of {settings['budget']}, seeds {seeds}; "
            f"{settings['held_out']} held-out rows, batches of {settings['batch']}, rate {settings['rate']:g}. Mean ± "
            f"half the 95 % interval over seeds; tokens of whole trainings.\n\n{table(lines)}"
            f"\nDifficulties of the {settings['rows']} rows by epoch, mean over seeds:\n\n{epochs(one['epochs'])}"
        )
    return "\n".join(parts) or "Not measured yet.\n"


def by_rule() -> str:
    """What p3 learned with other rules of actions, beside what it learned by lines with the same seeds."""
    known = results()
    others = [one for one in known.values() if one["settings"]["actions"] != RULE]
    if not others:
        return "Not measured yet.\n"
    lines = [["actions", "seed", "loss", "above lines", "difficulties of epoch 1 and 2 agree"]]
    for one in [known["gsm8k"], *others]:
        for seed in others[0]["trained"]["seeds"]:
            loss, by_line = (losses(it)[seed] for it in (one, known["gsm8k"]))
            rule, then = one["settings"]["actions"], one["epochs"][f"p3 {seed}"][1]["before"]
            above = "" if rule == RULE else f"{loss - by_line:.4f}".replace("-", "−")
            lines.append([rule, str(seed), f"{loss:.4f}", above, number(then)])
    return table(lines)


def losses(one: dict) -> dict[int, float]:
    """Seed → the loss of the first strategy."""
    trained = one["trained"]
    return dict(zip(trained["seeds"], trained["strategies"][0]["results"]["loss"]["values"], strict=True))


def epochs(found: dict[str, list[dict]]) -> str:
    """What became of the difficulties of all rows, and what was selected, by strategy and epoch."""
    heads = ["mean p3", "its ρ with length", "its ρ with the epoch before"]
    of_picks = ["length of picks", "picked before", "their log det / row", "hardest among them (by chance)"]
    lines = [["trained by", "epoch", *heads, *of_picks]]
    for name in dict.fromkeys(key.rpartition(" ")[0] for key in found):
        runs = [one for key, one in found.items() if key.rpartition(" ")[0] == name]
        for place, some in enumerate(zip(*runs, strict=True)):
            keys = ("difficulty", "by_length", "before", "length", "again", "log_det", "top", "chance")
            means = {key: sum(one[key] for one in some) / len(some) for key in keys if key in some[0]}
            shown = [number(means[key]) if key in means else "" for key in keys[:3]]
            shown += [f"{means['length']:.1f}", f"{means['again']:.0%}", f"{means['log_det']:.3f}".replace("-", "−")]
            shown += [f"{means['top']:.2f} ({means['chance']:.2f})" if "top" in means else ""]
            lines.append([name if not place else "", str(some[0]["epoch"]), *shown])
    return table(lines)


def refresh() -> str:
    """What partial re-scoring would have given on the trainings' epochs: of p3 in full, of the others at a quarter."""
    known = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in RESULTS.glob("refresh*.json")}
    own = known.pop("refresh")
    lines = [["", "scored whole up to epoch", "epoch", "ρ, nothing scored", "ρ at 25 %", "Jaccard, nothing", "at 25 %"]]
    for name, one in sorted(known.items()):
        share = {(it["whole"], it["epoch"], it["share"]): it for it in one["results"]}
        title = f"{name} ({ran(one)})"
        for whole, epoch in dict.fromkeys(key[:2] for key in share):
            pair = [share[whole, epoch, part] for part in (0.0, 0.25)]
            values = [f"{it[kind]:.3f}" for kind in ("spearman", "jaccard") for it in pair]
            lines.append([title, str(whole), str(epoch), *values])
            title = ""
    return f"refresh ({ran(own)}):\n\n{rescored(own['results'])}\nAnd of other trainings:\n\n{table(lines)}"


def ran(one: dict) -> str:
    """How much a call of the benchmark looked at."""
    runs = len(one["runs"])
    return f"{runs} training{'s' * (runs > 1)}, {one['runs'][0]['rows']} rows, {one['seeds']} draws in each"


def rescored(found: list[dict]) -> str:
    """The same of one call of the benchmark."""
    heads = ["ρ with the full re-score", "of predicted rows", "Jaccard, eligible", "error", "error told", "draws"]
    lines = [["scored whole up to epoch", "epoch", "tokens scored", *heads]]
    for it in found:
        names = ("spearman", "spearman_predicted", "jaccard", "rmse", "claimed")
        values = ["" if it[name] is None else f"{it[name]:.3f}" for name in names]
        if it["spearman"] is None:
            values[0] = "too few rows"
        draws = str(it["draws"]) if it["share"] else ""
        lines.append([str(it["whole"]), str(it["epoch"]), f"{it['share']:.0%}", *values, draws])
    return table(lines)


def seen() -> str:
    """What a trainer's own log-probabilities say of the rows trained on."""
    one = json.loads((RESULTS / "seen.json").read_text(encoding="utf-8"))
    heads = ["rows", "ρ with the re-score: seen", "before", "in the second half: seen", "before"]
    lines = [["epoch", *heads, "seen − re-score: first step", "last step"]]
    for it in one["epochs"]:
        values = [it[name] for name in ("seen", "before", "seen late", "before late")] + [it["bias"][0], it["bias"][-1]]
        lines.append([str(it["epoch"]), str(len(it["rows"])), *map(number, values)])
    told, lines = (
        table(lines),
        [["epoch", "tokens scored", "ρ of all rows without them", "with them among the predictors"]],
    )
    for it in one["predicting"]:
        lines.append([str(it["epoch"]), f"{it['share']:.0%}", f"{it['without']:.3f}", f"{it['with']:.3f}"])
    return f"{told}\nPredicted by `--refresh`, {one['seeds']} draws:\n\n{table(lines)}"


def table(lines: list[list[str]]) -> str:
    """Lines of cells as Markdown."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def interval(value: list[float] | None) -> str:
    """[value, low, high] as text."""
    if value is None:
        return ""
    if value[0] is None or value[0] != value[0]:
        return "–"
    return f"{number(value[0])} [{number(value[1])}, {number(value[2])}]"


def half(value: dict) -> str:
    """A mean over seeds as text."""
    mean = f"{value['mean']:.4f}".replace("-", "−")
    return mean + ("" if value["half"] is None else f" ± {value['half']:.4f}")


def number(value: float | None) -> str:
    """Two digits, with a true minus; none where there is no number."""
    return "–" if value is None or value != value else f"{value:.2f}".replace("-", "−")


PARTS = {
    "agreement": agreement,
    "groups": groups,
    "rules": rules,
    "spread": spread,
    "stability": stability,
    "selections": selections,
    "trainings": trainings,
    "sweeps": sweeps,
    "by-rule": by_rule,
    "refresh": refresh,
    "seen": seen,
}


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: made by docs/make_evidence.py -->\n", f"<!-- end of {name} -->\n"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            sys.exit(f"docs/evidence.md: no lines {begin.strip()} and {end.strip()}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/evidence.md is stale: make docs")
    PAGE.write_text(page(), encoding="utf-8")
