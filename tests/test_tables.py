"""Tables for people: what the width of the terminal does to them."""

import numpy as np
import pytest

from p3select import comparison, strategies, tables

NAMES = [*strategies.STRATEGIES, "uniform+per=source"]


def shown(found, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    tables.comparison(found)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def compared(names, budget=1000, short=(), **given):
    """As compare gives it, of selections at random; the second and the third are the same."""
    masks = np.random.default_rng(0).random((len(names), 7500)) < 0.13
    masks[2] = masks[1]
    one = {"epoch": 1, "rows": 1_000, "pool": 3_750, "tokens": 234_567, "length": 234.5, "difficulty": 0.7654,
           "cells": 0.7, "near_duplicates": 1_234, "log_det": -0.4321, "distance": 0.5678,
           "shift": {"source": 0.101, "level": 0.202, "subject": 0.303}}  # fmt: skip
    return {
        "budget": budget,
        "epochs": 5,
        "strategies": {name: {} for name in names} | given,
        "left_out": {},
        "all": [{"epoch": 1, "rows": 7_500, "length": 180.2, "difficulty": 0.77}],
        "selections": [one | {"strategy": name, "shortfall": 1_234 * (name in short)} for name in names],
        "jaccard": [{"epoch": 1, "values": comparison.jaccard(masks).tolist()}],
        "seconds": [{"epoch": 1, "strategies": dict.fromkeys(names, 123.4)}],
    }


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("more", [[], ["p3+selector=kdpp+quality_weight=0+fresh=1"]])
def test_no_number_of_a_comparison_is_cut(width, more, monkeypatch, capsys):
    names = [*NAMES, *more]
    found = compared(names, short=names[:3])
    found["trained"] = trained(names)
    lines = shown(found, width, monkeypatch, capsys)
    assert not [line for line in lines if "…" in line]
    tables_ = [line for line in lines if not line.startswith(("epoch", "short:", "trained for"))]
    assert max(map(len, tables_)) <= width
    text = "\n".join(lines)
    for number in ("1,234", "234,567", "0.7654", "123.4 s", "-0.4321", "30.3%", "1.2346 ± 0.0123", "-0.0123 ± 0.0456"):
        assert text.count(number) >= 3, number


def trained(names):
    result = {"mean": 1.23456, "half": 0.0123, "difference": {"mean": -0.0123, "half": 0.0456}}
    cost = {"rows": 4_000, "tokens": 938_268, "tokens_scored": 1_351_500, "seconds_training": 671,
            "seconds_scoring": 480}  # fmt: skip
    results = dict.fromkeys(("loss", "exact_match", "accuracy"), result)
    return {
        "epochs": 4,
        "seeds": [0, 1, 2],
        "before": dict.fromkeys(results, 1.9),
        "strategies": [{"strategy": name, "results": results, **cost} for name in names],
    }


def test_each_two_selections_of_all_strategies_are_told_in_80_columns(monkeypatch, capsys):
    found = compared(NAMES)
    lines = shown(found, 80, monkeypatch, capsys)
    start = lines.index(next(line for line in lines if line.startswith("rows in common, %")))
    assert lines[start].split()[4:] == [str(number) for number in range(1, len(NAMES))]
    for number, (name, row) in enumerate(zip(NAMES, found["jaccard"][0]["values"], strict=True)):
        wanted = ["=" if value == 1 else f"{100 * value:.0f}" for value in row[:number]]
        assert lines[start + 1 + number].split() == [str(number + 1), name, *wanted]
    assert lines[start + 1 + len(NAMES)] == "=: the same rows"


def test_the_most_alike_are_told_where_there_is_no_room_for_each_two(monkeypatch, capsys):
    names = [*NAMES, "p3+selector=kdpp+quality_weight=0"]
    found = compared(names)
    values = np.array(found["jaccard"][0]["values"])
    lines = shown(found, 80, monkeypatch, capsys)
    start = lines.index(next(line for line in lines if line.startswith("most rows in common")))
    pairs = [line.rsplit(maxsplit=1) for line in lines[start + 1 : start + 1 + tables.ALIKE]]
    assert pairs[0] == [f"{names[1]}, {names[2]}", "="]
    best = np.sort(values[np.tril_indices(len(names), -1)])[::-1]
    assert [share for _, share in pairs[1:]] == [f"{100 * value:.0f}" for value in best[1 : tables.ALIKE]]
    for pair, share in pairs[1:]:
        one, other = (names.index(name) for name in pair.split(", "))
        assert f"{100 * values[one, other]:.0f}" == share
    told = lines[start + 1 + tables.ALIKE]
    assert "compare.json (jaccard)" in told
    needed = int(told.split()[-2])
    for width, room in ((needed - 1, False), (needed, True)):
        lines = shown(found, width, monkeypatch, capsys)
        assert any(line.startswith("rows in common, %") for line in lines) is room
        assert not [line for line in lines if "…" in line]


def test_a_selection_short_of_the_budget_is_told(monkeypatch, capsys):
    lines = shown(compared(["p3", "uniform", "full"]), 80, monkeypatch, capsys)
    assert not [line for line in lines if "short" in line]
    given = {"uniform+per=source": {"at_most": 4, "per": "source"}, "full": {"budget": "100%"}}
    found = compared([*NAMES], "2ktok", ["p3", "rds", "full", "uniform+per=source"], **given)
    lines = shown(found, 80, monkeypatch, capsys)
    assert lines[2].split() == ["selected", "rows", "short", "tokens", "per", "row", "difficulty", "time"]
    assert next(line for line in lines if line.startswith("rds")).split()[1:4] == ["1,000", "1,234", "234,567"]
    assert next(line for line in lines if line.startswith("static")).split()[1:3] == ["1,000", "234,567"]
    assert [line for line in lines if line.startswith("short:")] == [
        "short: tokens fewer than the budget, as no more rows are eligible: p3, rds",
        "short: rows fewer than the budget, as no more rows are eligible: full",
        "short: tokens fewer than the budget, as the limits let no more in: uniform+per=source",
    ]
    # Where all that are eligible are taken it is not the limits that keep any out.
    found["selections"][-1]["pool"] = found["selections"][-1]["rows"]
    lines = shown(found, 80, monkeypatch, capsys)
    assert "as no more rows are eligible: p3, rds, uniform+per=source" in "".join(lines)
    assert not [line for line in lines if "limits" in line]
