"""The folder for axolotl; that its own loader reads it is shown in trainers/test_axolotl.py."""

import numpy as np
import polars as pl
import pytest
import yaml

import p3select
from p3select.dataset import load
from p3select.errors import InputError
from p3select.index import Selection, write

TEXT = 'é 😀\r\n\t\\n "quoted"  '
ORDER = [2, 0, 3]


def said(who, what):
    return [[{who: speaker, what: f"{TEXT}{n}"} for speaker in ("user", "assistant")] for n in range(4)]


KINDS = {
    "prompt": {"question: 1": [f"{TEXT}{n}" for n in range(4)], "answer": [f" {n}{TEXT}" for n in range(4)]},
    "messages": {"messages": said("role", "content")},
    "conversations": {"conversations": said("from", "value")},
    "turns": {"conversations": said("role", "content")},
    "alpaca": {"instruction": [TEXT] * 4, "input": ["", TEXT] * 2, "output": [f"{n}" for n in range(4)]},
}
GIVEN = {"prompt": {"prompt": "question: 1", "completion": "answer"}}


def text(instruction, more, output):
    return {
        "type": {
            "field_instruction": instruction,
            "field_input": more,
            "field_output": output,
            "field_system": "",
            "format": "{instruction}\n{input}",
            "no_input_format": "{instruction}",
        }
    }


def chat(name, role, content):
    mappings = {"role": role, "content": content}
    return {"type": "chat_template", "field_messages": name, "message_property_mappings": mappings}


ENTRIES = {
    "prompt": text("question: 1", "", "answer"),
    "messages": chat("messages", "role", "content"),
    "conversations": chat("conversations", "from", "value"),
    "turns": chat("conversations", "role", "content"),
    "alpaca": text("instruction", "input", "output"),
}


def made(tmp_path, data, columns=None):
    """A run with an index of three rows, without scores."""
    path = tmp_path / "rows.parquet"
    pl.DataFrame({**data, "level": range(len(next(iter(data.values()))))}).write_parquet(path)
    run, dataset = p3select.Run(tmp_path / "run"), load(path, columns)
    run.bind(dataset)
    about = {"dataset_fingerprint": dataset.fingerprint, "epoch": 1, "epochs": 1}
    write(Selection(np.array(ORDER), None, *[np.ones(3)] * 3, about, {}), run.index(1))
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_their_entry(kind, tmp_path):
    run, out = made(tmp_path, KINDS[kind], GIVEN.get(kind)), tmp_path / "an é: out"
    assert p3select.export(run, epoch=1, to="axolotl", out=out)["columns"] == [*KINDS[kind], "level"]
    found = yaml.safe_load((out / "axolotl.yml").read_text(encoding="utf-8"))
    assert found == {"datasets": [{"path": str(out / "train.parquet"), "ds_type": "parquet", **ENTRIES[kind]}]}
    assert pl.read_parquet(out / "train.parquet").equals(pl.read_parquet(tmp_path / "rows.parquet")[ORDER])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"prompt": said("role", "content"), "completion": said("role", "content")},
            "'prompt': .*put conversations into one column of messages",
        ),
        ({"messages": ["a"] * 4}, "'messages': .*wants a list of messages"),
        ({"messages": [[{"who": "a", "what": "b"}]] * 4}, "'messages': .*wants a list of messages"),
    ],
)
def test_rows_that_axolotl_does_not_read_are_refused(data, message, tmp_path):
    run = made(tmp_path, data)
    with pytest.raises(InputError, match=message):
        p3select.export(run, epoch=1, to="axolotl", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_datasets_loads_them(kind, tmp_path):
    import datasets

    p3select.export(made(tmp_path, KINDS[kind], GIVEN.get(kind)), epoch=1, to="axolotl", out=tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == pl.read_parquet(tmp_path / "rows.parquet")[ORDER].to_dicts()
