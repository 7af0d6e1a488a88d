import json
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import p3select
from p3select import dataset
from p3select.errors import InputError, MismatchError
from p3select.exporters import BUILTIN
from p3select.index import Selection, write
from tests.fakes import FakeScorer


@pytest.fixture
def run(tmp_path, gsm8k, smollm2):
    from transformers import AutoTokenizer

    data = tmp_path / "rows.parquet"
    pl.read_parquet(gsm8k)[:50].write_parquet(data)
    run = p3select.Run(tmp_path / "run")
    p3select.score(data, run, scorer=FakeScorer(AutoTokenizer.from_pretrained(smollm2)))
    p3select.select(run, epoch=1, epochs=2, budget=10, selector="uniform")
    return run


def chosen(path, data, rows):
    """A run folder with these rows as the index of its first epoch."""
    run, whole = p3select.Run(path), dataset.load(data)
    run.bind(whole)
    ones = np.ones(len(rows))
    about = {"dataset_fingerprint": whole.fingerprint}
    write(Selection(np.array(rows, np.int64), None, ones, ones, ones, about, {}), run.index(1))
    return run


def expected(run, tmp_path):
    rows = pl.read_parquet(run.index(1))["row"].to_list()
    return pl.read_parquet(tmp_path / "rows.parquet")[rows]


def test_every_column_and_value_in_the_order_picked(run, tmp_path):
    for to, out, read in (
        ("parquet", "rows-1.parquet", pl.read_parquet),
        ("jsonl", "rows-1.jsonl", pl.read_ndjson),
        ("trl", "rows-1", lambda path: pl.read_parquet(path / "train.parquet")),
    ):
        summary = p3select.export(run, epoch=1, to=to, out=tmp_path / out)
        assert summary["rows"] == 10
        assert read(tmp_path / out).equals(expected(run, tmp_path))


def test_a_folder_for_many_epochs_has_a_file_or_folder_for_each(run, tmp_path):
    run.index(2).write_bytes(run.index(1).read_bytes())
    (tmp_path / "there").mkdir()
    for epoch in (1, 2):
        for to, name in (("jsonl", f"epoch-00{epoch}.jsonl"), ("trl", f"epoch-00{epoch}/train.parquet")):
            out = p3select.export(run, epoch=epoch, to=to, out=f"{tmp_path}/many/")["out"]
            assert (tmp_path / "many" / name) in (written := Path(out), written / "train.parquet")
        assert p3select.export(run, epoch=epoch, to="parquet", out=tmp_path / "there")["out"].endswith(
            f"there/epoch-00{epoch}.parquet"
        )
    with pytest.raises(InputError, match=r"many/epoch-001\.jsonl: is there already"):
        p3select.export(run, epoch=1, to="jsonl", out=f"{tmp_path}/many/")
    assert len(list(tmp_path.glob("many/*"))) == 4


def test_what_load_dataset_would_read_too_is_refused(run, tmp_path):
    out = tmp_path / "epoch-1"
    for _ in range(2):
        p3select.export(run, epoch=1, to="trl", out=out, overwrite=True)
    (out / "train-00001.parquet").write_bytes((out / "train.parquet").read_bytes())
    with pytest.raises(InputError, match=r"holds train-00001\.parquet, which load_dataset would read too"):
        p3select.export(run, epoch=1, to="trl", out=out, overwrite=True)
    (tmp_path / "rows" / "epoch-001.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match="a folder, and jsonl writes a file"):
        p3select.export(run, epoch=1, to="jsonl", out=tmp_path / "rows", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file, and trl writes a folder"):
        p3select.export(run, epoch=1, to="trl", out=tmp_path / "file", overwrite=True)


@pytest.mark.slow
def test_datasets_loads_them(run, tmp_path):
    import datasets

    want = expected(run, tmp_path).to_dicts()
    p3select.export(run, epoch=1, to="trl", out=tmp_path / "trl")
    p3select.export(run, epoch=1, to="jsonl", out=tmp_path / "a.jsonl")
    p3select.export(run, epoch=1, to="parquet", out=tmp_path / "a.parquet")
    cache = str(tmp_path / "cache")
    assert datasets.load_dataset(str(tmp_path / "trl"), split="train", cache_dir=cache).to_list() == want
    for kind, name in (("json", "a.jsonl"), ("parquet", "a.parquet")):
        found = datasets.load_dataset(kind, data_files=str(tmp_path / name), split="train", cache_dir=cache)
        assert found.to_list() == want


@pytest.mark.slow
def test_datasets_loads_rows_of_different_keys(tmp_path):
    import datasets

    rows = [{"prompt": f"{n}", "completion": "b", **({"a": n} if n % 2 else {"b": {"c": f"{n}"}})} for n in range(4)]
    # The key comes first after the 10 MB that datasets goes by.
    late = [*({"prompt": "x" * 2**20, "completion": "b"} for _ in range(11)), rows[1]]

    def exported(name, rows, to="jsonl"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = chosen(tmp_path / name, tmp_path / f"{name}.jsonl", range(len(rows)))
        out = p3select.export(run, epoch=1, to=to, out=tmp_path / f"{name}-out.{to}")["out"]
        kind = "json" if to == "jsonl" else to
        return datasets.load_dataset(kind, data_files=out, split="train", cache_dir=str(tmp_path / "cache")).to_list()

    assert exported("rows", rows) == [{**dict.fromkeys(("a", "b")), **row} for row in rows]
    assert exported("first", late[::-1])[0]["a"] == 1
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        exported("late", late)
    assert exported("columns", late, to="parquet")[-1]["a"] == 1


def test_nothing_is_overwritten_unasked(run, tmp_path):
    out = tmp_path / "a.jsonl"
    out.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        p3select.export(run, epoch=1, to="jsonl", out=out)
    assert out.read_text() == "mine"
    p3select.export(run, epoch=1, to="jsonl", out=out, overwrite=True)
    assert len(out.read_text().splitlines()) == 10


def test_what_json_cannot_say_is_named(tmp_path, run):
    data = tmp_path / "rows.parquet"
    frame = pl.read_parquet(data)
    frame.with_columns(odd=pl.Series([float("nan")] * 50)).write_parquet(data)
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: .*export to parquet instead"):
        p3select.export(run, epoch=1, to="jsonl", out=tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    p3select.export(run, epoch=1, to="parquet", out=tmp_path / "a.parquet")
    assert np.isnan(pl.read_parquet(tmp_path / "a.parquet")["odd"][0])


def test_bad_input(tmp_path, run):
    with pytest.raises(InputError, match=r"no exporter 'xml'; there are .*jsonl, llamafactory, parquet, trl"):
        p3select.export(run, epoch=1, to="xml", out=tmp_path / "a")
    with pytest.raises(InputError, match=r"epoch-002\.parquet: no index there"):
        p3select.export(run, epoch=2, to="jsonl", out=tmp_path / "a")
    pl.read_parquet(tmp_path / "rows.parquet")[:49].write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(MismatchError, match="changed since"):
        p3select.export(run, epoch=1, to="jsonl", out=tmp_path / "a")
    (tmp_path / "rows.parquet").unlink()
    with pytest.raises(InputError, match=r"rows\.parquet: gone, and .*run\.json says that the rows are there"):
        p3select.export(run, epoch=1, to="jsonl", out=tmp_path / "a")


def test_conversations_survive(tmp_path, smollm2):
    from transformers import AutoTokenizer

    rows = [
        {"messages": [{"role": "user", "content": f"é {n} 😀\r\n"}, {"role": "assistant", "content": f"\n{n}"}], "n": n}
        for n in range(8)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    run = p3select.Run(tmp_path / "run")
    p3select.score(data, run, scorer=FakeScorer(AutoTokenizer.from_pretrained(smollm2)))
    chosen = p3select.select(run, epoch=1, epochs=1, budget=3, selector="topk")
    p3select.export(run, epoch=1, to="jsonl", out=tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [rows[row] for row in chosen.rows]


def test_lines_of_json_stay_as_they_are(tmp_path):
    first = [
        '{"prompt": "a", "completion": "b", "meta": {"a": 1}, "n": 1}',
        '{"n": 2.5,  "meta":{"b":2}, "completion": "\\u00e9 \\ud83d\\ude00", "prompt": "é 😀", "extra": null}',
    ]
    second = ['{"completion": "d", "prompt": "c"} ', '{"prompt": "1e3", "completion": "\\/", "n": 1e3, "big": 1.0}']
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(first).encode() + b"\r\n")
    (tmp_path / "b.ndjson").write_bytes("\n".join(second).encode())
    order = [3, 0, 2, 1]
    run = chosen(tmp_path / "run", [tmp_path / "a.jsonl", tmp_path / "b.ndjson"], order)
    p3select.export(run, epoch=1, to="jsonl", out=tmp_path / "out.jsonl")
    lines = [*first, *second]
    assert (tmp_path / "out.jsonl").read_bytes() == "".join(lines[row] + "\n" for row in order).encode()
    # A table has one type for a column.
    p3select.export(run, epoch=1, to="parquet", out=tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet")["n"].to_list() == [1000.0, 1.0, None, 2.5]


@pytest.mark.parametrize("source", ["parquet", "jsonl"])
@pytest.mark.parametrize("to", BUILTIN)
def test_memory_does_not_grow_with_the_selection(to, source, tmp_path, monkeypatch):
    # What is gathered at a time, at a size for tests.
    monkeypatch.setattr(dataset, "_HASHED_ROWS", 256)
    monkeypatch.setattr(dataset, "_BATCH_ROWS", 64)
    monkeypatch.setattr(dataset, "_PASS_BYTES", 2**18)
    count, length = 4000, 1000
    text = np.random.default_rng(0).bytes(count * length // 2).hex()
    table = pl.DataFrame({"prompt": [text[n * length : (n + 1) * length] for n in range(count)], "completion": "."})
    path = tmp_path / f"rows.{source}"
    if source == "parquet":
        table.write_parquet(path, row_group_size=256)
    else:
        table.write_ndjson(path)
    run = chosen(tmp_path / "run", path, np.random.default_rng(1).permutation(count))
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        p3select.export(run, epoch=1, to=to, out=tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert peak + pool.max_memory() < count * length / 2
