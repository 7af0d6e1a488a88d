import json
import pickle
from datetime import date

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p3select import dataset as dataset_module
from p3select.dataset import load, take, text, unchanged
from p3select.errors import InputError, MismatchError

ROWS = {"prompt": ["a", "b", "c é", "d"], "completion": ["1", "2", "3\n4", "😀"], "id": ["r0", "r1", "r2", "r3"]}


def parquet(path, data=ROWS, **options):
    pl.DataFrame(data).write_parquet(path, **options)
    return path


def test_rows_keep_their_order_over_files_folders_and_globs(tmp_path):
    parquet(tmp_path / "b.parquet", {key: values[2:] for key, values in ROWS.items()})
    parquet(tmp_path / "a.parquet", {key: values[:2] for key, values in ROWS.items()})
    for data in (tmp_path, str(tmp_path / "*.parquet"), [tmp_path / "a.parquet", tmp_path / "b.parquet"]):
        dataset = load(data)
        assert [row["prompt"] for row in dataset.rows()] == ROWS["prompt"]
        assert dataset.ids.to_pylist() == ROWS["id"]
    assert load(tmp_path).rows(1, 3) == [
        {"prompt": "b", "completion": "2"},
        {"prompt": "c é", "completion": "3\n4"},
    ]


def test_the_fingerprint_is_of_the_content_only(tmp_path):
    whole = load(parquet(tmp_path / "whole.parquet")).fingerprint
    grouped = load(parquet(tmp_path / "grouped.parquet", row_group_size=1, compression="gzip")).fingerprint
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in pl.DataFrame(ROWS).to_dicts()))
    more = parquet(tmp_path / "more.parquet", {**ROWS, "level": [1.0, 2.0, 3.0, 4.0]})
    assert grouped == whole == load(lines).fingerprint == load(more).fingerprint
    halves = tmp_path / "halves"
    halves.mkdir()
    parquet(halves / "0.parquet", {key: values[:1] for key, values in ROWS.items()})
    parquet(halves / "1.parquet", {key: values[1:] for key, values in ROWS.items()})
    assert load(halves).fingerprint == whole
    for column, number, value in (("prompt", 0, "A"), ("completion", 3, "🙂"), ("id", 1, "r9"), ("prompt", 1, None)):
        changed = {key: list(values) for key, values in ROWS.items()}
        changed[column][number] = value
        assert load(parquet(tmp_path / "changed.parquet", changed)).fingerprint != whole
    moved = {**ROWS, "prompt": ["ab", "", "c é", "d"]}
    assert load(parquet(tmp_path / "moved.parquet", moved)).fingerprint != whole


def test_conventions(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    cases = [
        ({"messages": [turns]}, {"messages": turns}),
        ({"prompt": [turns[:1]], "completion": [turns[1:]]}, {"prompt": turns[:1], "completion": turns[1:]}),
        (
            {"conversations": [[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]]},
            {"messages": turns},
        ),
        (
            {"instruction": ["Add."], "input": ["1 2"], "output": ["3"]},
            {"prompt": "Add.\n1 2", "completion": "3"},
        ),
        ({"instruction": ["Add."], "input": [""], "output": ["3"]}, {"prompt": "Add.", "completion": "3"}),
        ({"instruction": ["Add."], "output": ["3"]}, {"prompt": "Add.", "completion": "3"}),
    ]
    for number, (data, row) in enumerate(cases):
        path = tmp_path / f"{number}.parquet"
        pl.DataFrame(data).write_parquet(path)
        assert load(path).rows() == [row]


def test_columns_can_be_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"question": ["q"], "answer": ["a"], "uid": [7], "completion": ["no"]})
    dataset = load(path, {"prompt": "question", "completion": "answer", "id": "uid"})
    assert dataset.rows() == [{"prompt": "q", "completion": "a"}]
    assert dataset.ids.to_pylist() == [7]
    for columns, message in (
        ({"prompt": "nope"}, "no column 'nope'"),
        ({"question": "question"}, "unknown column role 'question'"),
        ({"prompt": "question", "input": "uid"}, "do not go with"),
    ):
        with pytest.raises(InputError, match=message):
            load(path, columns)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["a", None, "é", "a"], ["a", "null", "é", "a"]),
        ([1, None, -2, 1], ["1", "null", "-2", "1"]),
        ([0.5, 2.0, None], ["0.5", "2", "null"]),
        ([True, None], ["true", "null"]),
        ([None, None], ["null", "null"]),
        ([["é", None], None, []], ['["é", null]', "null", "[]"]),
        ([{"a": 1, "b": "x"}, None], ['{"a": 1, "b": "x"}', "null"]),
        ([[date(2024, 1, 2)]], ['["2024-01-02"]']),
        ([date(2024, 1, 2)], ["2024-01-02"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.array([], pa.int64()), []),
    ],
)
def test_a_column_of_any_type_as_text(values, texts):
    array = pa.array(values)
    for column in (pa.chunked_array([array]), pa.chunked_array([array[:1], array[1:]])):
        found = text(column)
        assert found.dtype == object
        assert found.tolist() == texts
        assert len(set(map(id, found))) == len(set(texts))


def test_bad_files_are_named(tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "mixed.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": ["a"], "completion": "b"}\n')
    (tmp_path / "rows.csv").write_text("prompt,completion\n")
    parquet(tmp_path / "other.parquet", {"text": ["x"]})
    parquet(tmp_path / "none.parquet", {"prompt": [], "completion": []})
    for name, message in (
        ("torn.parquet", "torn.parquet: not readable as Parquet"),
        ("bad.jsonl", "bad.jsonl, line 2: not JSON"),
        ("list.jsonl", "line 1: a list where an object should be"),
        ("mixed.jsonl", "line 2, column 'prompt': list, where lines before have str"),
        ("rows.csv", "rows.csv: not a .parquet"),
        ("other.parquet", "no columns to train on.*it has text"),
        ("none.parquet", "no rows"),
        ("gone.parquet", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            load(tmp_path / name)


def test_take_gives_every_column_in_the_order_asked(tmp_path):
    parquet(tmp_path / "a.parquet", {**{key: values[:3] for key, values in ROWS.items()}, "level": [1, 2, 3]})
    parquet(tmp_path / "b.parquet", {**{key: values[3:] for key, values in ROWS.items()}, "level": [4]})
    paths = load(tmp_path).paths
    table = take(paths, np.array([3, 0, 2])).read_all()
    assert table.column_names == ["prompt", "completion", "id", "level"]
    assert table.column("level").to_pylist() == [4, 1, 3]
    assert table.column("completion").to_pylist() == ["😀", "1", "3\n4"]
    with pytest.raises(InputError, match="fewer rows now than when they were selected"):
        take(paths, np.array([4])).read_all()


VALUES = st.one_of(st.none(), st.text(max_size=5), st.just("x" * 40))
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "é"])}, optional={"content": VALUES, "name": VALUES})


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_files_read_in_parts_are_the_files_read_whole(data, tmp_path_factory, monkeypatch):
    """Parts of 3 rows, passes of some 200 bytes: each row crosses some edge."""
    folder = tmp_path_factory.mktemp("parts")
    monkeypatch.setattr(dataset_module, "_BATCH_ROWS", 3)
    monkeypatch.setattr(dataset_module, "_HASHED_ROWS", 4)
    monkeypatch.setattr(dataset_module, "_PASS_BYTES", 200)
    levels = st.one_of(st.none(), st.integers(-9, 9), st.just(0.5))
    rows = [
        {"messages": data.draw(st.lists(TURN, min_size=1, max_size=3)), "id": data.draw(VALUES), "level": level}
        for level in data.draw(st.lists(levels, min_size=1, max_size=20))
    ]
    edge = data.draw(st.integers(1, len(rows)))
    for number, part in enumerate((rows[:edge], rows[edge:])):
        if not part:
            continue
        lines = folder / f"{number}.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in part))
        if data.draw(st.booleans()):
            table = pa.table({name: pa.array([row[name] for row in part]) for name in rows[0]})
            pa.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=2)
            lines.unlink()
    whole = load(folder)
    assert unchanged(whole.paths, whole.columns, whole.fingerprint)
    assert not unchanged(whole.paths, whole.columns, whole.fingerprint[::-1])
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True, min_size=1)))
    taken = take(whole.paths, chosen)
    assert taken.schema.names == ["messages", "id", "level"]
    for row, original in zip(taken.read_all().to_pylist(), (rows[number] for number in chosen), strict=True):
        assert {key: row[key] for key in ("id", "level")} == {key: original[key] for key in ("id", "level")}
        for turn, before in zip(row["messages"], original["messages"], strict=True):
            assert {key: turn.get(key) for key in ("role", "content", "name")} == {
                key: before.get(key) for key in ("role", "content", "name")
            }


def test_arrow_layout_does_not_count(tmp_path):
    rows = [[{"role": "user", "content": "hi"}], None, [], [{"role": "user", "content": None}]]
    large = pa.array(rows, pa.large_list(pa.struct([("role", pa.large_string()), ("content", pa.large_string())])))
    small = pa.array(rows, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))
    found = []
    for number, array in enumerate((large, small)):
        path = tmp_path / f"{number}.parquet"
        pa.parquet.write_table(pa.table({"messages": array}), path)
        found.append(load(path).fingerprint)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "no rows"),
        ('[{"prompt": "a"}]', "line 1: a list where an object should be; write one object a line"),
        ('{\n"prompt": 1}', "line 1: not JSON.*a line must hold one whole object"),
        ('{"prompt": "a", "completion": "b"}\n\n{"prompt": 1, "completion": "b"}', "line 3, column 'prompt': int"),
        ('{"prompt": "a"}\n{"prompt": "b\\ud83d"}', r"line 2, column 'prompt': '\\ud83d' is half of a character; mend"),
        ('{"a": 1}\n{"\\ud83d": 1}', r"line 2, column '\\ud83d': '\\ud83d' is half of a character"),
        ('{"messages": []}\n\n{"messages": [{"content": "\\ude00"}]}', r"line 3, column 'messages': '\\ude00' is half"),
        ('{"prompt": "a", "id": 1}\n{"id": 9223372036854775808}', "line 2, column 'id': a whole number beyond 64 bits"),
        ('{"id": 0.5}\n{"id": 1}\n{"id": -9223372036854775809}', "line 3, column 'id': a whole number beyond 64 bits"),
        ('{"prompt": "a"}\n{"prompt": [1, "b"]}\n{"prompt": "c"}', "line 2, column 'prompt': values of a list must be"),
        (
            '{"id": ["a"]}\n{"id": null}\n\n{"id": [1]}\n{"id": ["b"]}',
            "line 4, column 'id': values of a column must be",
        ),
        ('{"id": 1}\n{"id": 0.5}\n{"id": "a"}\n{"id": 2}', "line 3, column 'id': str, where lines before have int"),
    ],
)
def test_json_lines_that_are_none_are_said_with_the_line(tmp_path, lines, message):
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "rows.jsonl")


def test_a_file_given_twice_in_other_words(tmp_path, gsm8k):
    with pytest.raises(InputError, match="a file is given twice"):
        load([gsm8k, gsm8k.parent / ".." / gsm8k.parent.name / gsm8k.name])


def test_the_role_that_is_lacking_is_named(tmp_path):
    pl.DataFrame({"question": ["a"], "answer": ["b"]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="no column for completion; name it, --column completion=NAME: there are"):
        load(tmp_path / "rows.parquet", {"prompt": "question"})


def test_a_slice_of_json_lines_reads_its_lines_alone(tmp_path):
    """Rows that lack a key, or whose turns do, have the types of the whole dataset."""
    path = tmp_path / "rows.jsonl"
    turn = {"role": "user", "content": "?"}
    rows = [{"id": 1, "messages": [turn, {"role": "assistant", "content": "!"}]} for _ in range(5)]
    rows += [{"messages": [{**turn, "name": "Ann"}, {"role": "assistant", "content": "!"}]} for _ in range(5)]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    dataset = load(path)
    for first, stop in ((0, 3), (4, 6), (7, 10)):
        part = dataset.source(first, stop, here=False)
        assert part.read().table.equals(dataset.table.slice(first, stop - first))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(["{broken\n", *lines[1:]]))
    assert part.read().table.num_rows == 3
    with pytest.raises(InputError, match="line 1: not JSON"):
        dataset.source(0, 3, here=False).read()


def test_any_slice_of_any_files_is_that_of_the_whole_and_needs_its_files_alone(tmp_path):
    """Parquet and JSON Lines, files of no rows between; a slice is read on where the other files are gone."""
    data = tmp_path / "data"
    data.mkdir()
    at = 0
    for number, count in enumerate((0, 3, 0, 0, 1, 4, 0, 2, 0)):
        rows = [{"prompt": f"{at + n} é", "completion": "x" * n, "id": at + n} for n in range(count)]
        if number in (4, 5):
            rows[0]["id"] = None  # all that the first of these has
            (data / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        else:
            schema = {"prompt": pl.String, "completion": pl.String, "id": pl.Int64}
            pl.DataFrame(rows, schema).write_parquet(data / f"{number}.parquet", row_group_size=2)
        at += count
    dataset = load(data)
    assert dataset.edges.tolist() == [0, 0, 3, 3, 3, 4, 8, 8, 10, 10]
    away = tmp_path / "away"
    for first in range(at):
        for stop in range(first + 1, at + 1):
            part = pickle.loads(pickle.dumps(dataset.source(first, stop, here=False)))
            data.rename(away)
            data.mkdir()
            for path in part.paths:
                (away / path.rpartition("/")[2]).rename(path)
            found = part.read()
            assert found.table.equals(dataset.table.slice(first, stop - first))
            assert found.rows() == dataset.rows(first, stop)
            assert found.edges[0] <= first < found.edges[1]
            assert found.edges[-2] < stop <= found.edges[-1]
            for path in part.paths:
                (data / path.rpartition("/")[2]).rename(away / path.rpartition("/")[2])
            data.rmdir()
            away.rename(data)
    assert dataset.source(0, 4, here=False).paths[0].endswith("1.parquet")
    assert len(dataset.source(7, 9, here=False).paths) == 3
    # Rows before those of a slice may come and go; its own may not.
    late, early = dataset.source(8, 10, here=False), dataset.source(1, 3, here=False)
    parquet(data / "1.parquet", {"prompt": ["new"], "completion": ["1"], "id": [0]})
    assert late.read().rows() == dataset.rows(8, 10)
    with pytest.raises(MismatchError, match=r"1\.parquet: rows 1 to 2 are not those"):
        early.read()
    (data / "1.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"1\.parquet: not readable as Parquet"):
        early.read()


def test_shards_of_many_files_run_over_each_file_once(tmp_path):
    """200 small files, more than any memory of them; shards that lie across files."""
    for number in range(200):
        rows = [{"prompt": f"{number} {n}", "completion": "x"} for n in range(5 + number % 3)]
        (tmp_path / f"{number:03d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load(tmp_path)
    before = dataset_module._places_of.cache_info().misses
    shards = [dataset.source(first, min(first + 16, len(dataset)), here=False) for first in range(0, len(dataset), 16)]
    assert dataset_module._places_of.cache_info().misses == before  # the driver has them counted
    tables = [shard.read().table for shard in shards]
    assert pa.concat_tables(tables).equals(dataset.table)
    assert dataset_module._places_of.cache_info().misses == before + 200
    assert max(len(shard.paths) for shard in shards) == 4
    assert sum(len(pickle.dumps(shard)) for shard in shards) < 2000 * len(shards)
