"""The folder for LLaMA-Factory; that its own loader reads it is shown in trainers/test_llamafactory.py."""

import json

import numpy as np
import polars as pl
import pytest

import p3select
from p3select.dataset import load
from p3select.errors import InputError
from p3select.exporters import llamafactory
from p3select.index import Selection, write

TEXT = 'é 😀\r\n\t\\n "quoted"  '
USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"


def said(*turns, who="role", what="content"):
    return [{who: speaker, what: f"{TEXT}{n}"} for n, speaker in enumerate(turns)]


def shared(*turns):
    return said(*turns, who="from", what="value")


KINDS = {
    "prompt": {"question": [f"{TEXT}{n}" for n in range(4)], "answer": [f" {n}{TEXT}" for n in range(4)]},
    "messages": {"messages": [said(USER, ASSISTANT), said(SYSTEM, USER, ASSISTANT, USER, ASSISTANT)] * 2},
    "tools": {
        "messages": [said(USER, ASSISTANT, TOOL, ASSISTANT), said(USER, ASSISTANT)] * 2,
        "tools": ['[{"name": "é"}]'] * 4,
    },
    "conversations": {"conversations": [shared("human", "gpt"), shared("system", "human", "gpt")] * 2},
    "named": {"conversations": [shared("user", "assistant")] * 4},
    "alpaca": {"instruction": [f"{TEXT}{n}" for n in range(4)], "input": ["", TEXT] * 2, "output": [TEXT, "x"] * 2},
}
GIVEN = {"prompt": {"prompt": "question", "completion": "answer"}}
ENTRIES = {
    "prompt": {"columns": {"prompt": "question", "response": "answer"}},
    "messages": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    },
    "conversations": {
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
            "observation_tag": "observation",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    },
    "alpaca": {"columns": {"prompt": "instruction", "query": "input", "response": "output"}},
}
ENTRIES["tools"] = ENTRIES["messages"] | {"columns": {"messages": "messages", "tools": "tools"}}
ENTRIES["named"] = ENTRIES["conversations"] | {
    "tags": ENTRIES["conversations"]["tags"] | {"user_tag": "user", "assistant_tag": "assistant"}
}
ORDER = [2, 0, 3]


def made(tmp_path, data, columns=None):
    """A run with an index of three rows, without scores."""
    path = tmp_path / "rows.parquet"
    pl.DataFrame({**data, "level": range(len(next(iter(data.values()))))}).write_parquet(path)
    run = p3select.Run(tmp_path / "run")
    dataset = load(path, columns)
    run.bind(dataset)
    ones = np.ones(3)
    about = {"dataset_fingerprint": dataset.fingerprint, "epoch": 1, "epochs": 1}
    write(Selection(np.array(ORDER), None, ones, ones, ones, about, {}), run.index(1))
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_their_entry(kind, tmp_path):
    run = made(tmp_path, KINDS[kind], GIVEN.get(kind))
    summary = p3select.export(run, epoch=1, to="llamafactory", out=tmp_path / "out")
    assert summary["columns"] == [*KINDS[kind], "level"]
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))
    assert info == {"p3select": {"file_name": "p3select.parquet", **ENTRIES[kind]}}
    rows = pl.read_parquet(tmp_path / "out" / "p3select.parquet")
    assert rows.equals(pl.read_parquet(tmp_path / "rows.parquet")[ORDER])


def test_other_entries_stay(tmp_path):
    run, out = made(tmp_path, KINDS["alpaca"]), tmp_path / "out"
    out.mkdir()
    (out / "dataset_info.json").write_text('{"mine": {"file_name": "é.json"}, "p3select": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="is there already"):
        p3select.export(run, epoch=1, to="llamafactory", out=out)
    p3select.export(run, epoch=1, to="llamafactory", out=out, overwrite=True)
    info = json.loads((out / "dataset_info.json").read_text(encoding="utf-8"))
    assert info["mine"] == {"file_name": "é.json"}
    assert info["p3select"] == {"file_name": "p3select.parquet", **ENTRIES["alpaca"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"messages": [said(ASSISTANT, USER)] * 4}, "row 0 of the selection: turns of assistant, user, .* drops rows"),
        ({"messages": [said(USER, ASSISTANT)] * 3 + [said(USER, USER)]}, "row 2 of the selection: turns of user, user"),
        ({"messages": [said(USER, ASSISTANT, SYSTEM)] * 4}, "turns of user, assistant, system"),
        ({"messages": [said(SYSTEM)] * 4}, "turns of system"),
        ({"messages": [[{"role": USER, "content": None}, *said(ASSISTANT)]] * 4}, "a turn whose content is no text"),
        (
            {"conversations": [shared("user", "gpt"), *[shared("human", "gpt")] * 3]},
            "row 1 of the selection: 'user' where rows before have 'human'",
        ),
        ({"messages": [said(USER, ASSISTANT)] * 4, "tools": [["a"]] * 4}, "'tools': .* one text of JSON"),
        (
            {"prompt": [said(USER)] * 4, "completion": [said(ASSISTANT)] * 4},
            "'prompt': .*put conversations into one column of messages",
        ),
        ({"prompt": ["a"] * 4, "completion": ["a", "b", None, "c"]}, "row 0 of the selection: no completion"),
    ],
)
def test_rows_that_it_would_drop_are_named(data, message, tmp_path):
    run = made(tmp_path, data)
    with pytest.raises(InputError, match=message):
        p3select.export(run, epoch=1, to="llamafactory", out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_datasets_loads_them(kind, tmp_path):
    import datasets

    p3select.export(made(tmp_path, KINDS[kind], GIVEN.get(kind)), epoch=1, to="llamafactory", out=tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == pl.read_parquet(tmp_path / "rows.parquet")[ORDER].to_dicts()


def test_the_entry_of_rows_without_messages_has_no_tags():
    assert llamafactory.entry({"prompt": "a", "completion": "b", "id": "c"}, {}) == {
        "columns": {"prompt": "a", "response": "b"}
    }
