import numpy as np
import polars as pl
import pytest

import p3select
from p3select import embeddings
from p3select.errors import InputError, MismatchError
from tests.fakes import FakeEncoder


def test_they_are_unit_rows_in_file_order_and_memory_mapped(tmp_path, gsm8k, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK_ROWS", 30)
    run = p3select.Run(tmp_path)
    assert p3select.embed(gsm8k, run, FakeEncoder()) | {"seconds": 0} == {
        "rows": 200,
        "dimension": 24,
        "truncated": 0,
        "empty": 0,
        "near_duplicates": 0,
        "reused": False,
        "seconds": 0,
    }
    vectors, _ = embeddings.read(run)
    assert isinstance(vectors, np.memmap)
    texts = pl.read_parquet(gsm8k)["prompt"].to_list()
    direct, _ = FakeEncoder().encode(texts)
    np.testing.assert_allclose(vectors, direct / np.linalg.norm(direct, axis=1, keepdims=True), rtol=1e-5)
    assert sorted(path.name for path in run.embeddings.parent.iterdir()) == ["embeddings.json", "embeddings.npy"]
    assert p3select.embed(gsm8k, run, FakeEncoder())["reused"] is True


def test_a_broken_call_goes_on_where_it_was(tmp_path, gsm8k, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK_ROWS", 50)

    class Breaks(FakeEncoder):
        calls = 0

        def encode(self, texts):
            self.calls += 1
            if self.calls > 2:
                raise RuntimeError("the machine went away")
            return super().encode(texts)

    whole, broken = p3select.Run(tmp_path / "whole"), p3select.Run(tmp_path / "broken")
    p3select.embed(gsm8k, whole, FakeEncoder())
    with pytest.raises(RuntimeError):
        p3select.embed(gsm8k, broken, Breaks())
    with pytest.raises(InputError, match="no embeddings"):
        embeddings.read(broken)
    with pytest.raises(MismatchError, match="encoder: fake there, other now"):
        p3select.embed(gsm8k, broken, FakeEncoder("other"))
    again = Breaks()
    p3select.embed(gsm8k, broken, again)
    assert again.calls == 2
    assert whole.embeddings.read_bytes() == broken.embeddings.read_bytes()


def test_other_vectors_are_not_replaced_unasked(tmp_path, gsm8k):
    run = p3select.Run(tmp_path)
    p3select.embed(gsm8k, run, FakeEncoder())
    before = run.embeddings.read_bytes()
    with pytest.raises(MismatchError, match="differs in encoder"):
        p3select.embed(gsm8k, run, FakeEncoder("other"))
    assert run.embeddings.read_bytes() == before
    assert p3select.embed(gsm8k, run, FakeEncoder("other"), overwrite=True)["reused"] is False


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_bad_vector_is_refused_with_its_row(tmp_path, gsm8k, value, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK_ROWS", 40)
    with pytest.raises(InputError, match="row 5: its embedding is zero or not finite"):
        p3select.embed(gsm8k, tmp_path, FakeEncoder(broken=value))


@pytest.mark.slow
def test_a_real_encoder(tmp_path, gsm8k, minilm):
    from sentence_transformers import SentenceTransformer

    data = tmp_path / "rows.parquet"
    rows = pl.read_parquet(gsm8k)[:12].with_columns(
        prompt=pl.when(pl.int_range(12) == 3).then(pl.lit("word " * 600)).otherwise("prompt")
    )
    rows.write_parquet(data)
    run = p3select.Run(tmp_path / "run")
    assert p3select.embed(data, run, minilm)["truncated"] == 1
    expected = SentenceTransformer(str(minilm)).encode(rows["prompt"].to_list(), normalize_embeddings=True)
    np.testing.assert_allclose(embeddings.read(run)[0], expected, atol=2e-6)


def test_vectors_made_before(tmp_path, gsm8k):
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    pl.DataFrame({"vec": vectors.tolist()}).write_parquet(tmp_path / "v.parquet")
    one, other = p3select.Run(tmp_path / "one"), p3select.Run(tmp_path / "other")
    assert p3select.embed(gsm8k, one, vectors=tmp_path / "v.npy")["dimension"] == 8
    p3select.embed(gsm8k, other, vectors=f"{tmp_path}/v.parquet:vec")
    for name in ("v.pq", "V.PARQUET", "a:b.parquet"):
        (tmp_path / name).write_bytes((tmp_path / "v.parquet").read_bytes())
        p3select.embed(gsm8k, tmp_path / f"run of {name[0]}", vectors=f"{tmp_path / name}:vec")
    np.testing.assert_allclose(np.load(one.embeddings), vectors / np.linalg.norm(vectors, axis=1)[:, None], rtol=1e-6)
    np.testing.assert_allclose(np.load(one.embeddings), np.load(other.embeddings), rtol=1e-6)


def test_vectors_that_do_not_fit_are_refused(tmp_path, gsm8k):
    good = np.ones((200, 4))
    bad = good.copy()
    bad[130] = 0
    ragged = [[1.0]] * 200
    ragged[7] = [1.0, 2.0]
    np.save(tmp_path / "few.npy", good[:10])
    np.save(tmp_path / "flat.npy", good.ravel())
    np.save(tmp_path / "zero.npy", bad)
    np.savez(tmp_path / "archive.npz", good)
    np.save(tmp_path / "objects.npy", good.astype(object))
    (tmp_path / "text.npy").write_text("no")
    for name in ("v.parquet", "v.pq"):
        pl.DataFrame({"vec": ragged}).write_parquet(tmp_path / name)
    for name, message in (
        ("few.npy", "10 rows, and the dataset has 200"),
        ("flat.npy", "shape"),
        ("zero.npy", "row 130"),
        ("text.npy", "not readable"),
        ("archive.npz", "archive.npz': not readable as .npy: .*; give an array of floats"),
        ("objects.npy", "not readable as .npy: .*; give an array of floats"),
        ("gone.npy", "no such file"),
        ("v.parquet", "name its column too; give FILE.npy or FILE.parquet:COLUMN"),
        ("v.pq", "name its column too"),
        ("few.npy:vec", "no Parquet file, and only those have columns"),
        ("v.parquet:vec", "row 7"),
        ("v.parquet:other", "'other'"),
    ):
        with pytest.raises(InputError, match=message):
            p3select.embed(gsm8k, tmp_path / "run", vectors=tmp_path / name)
    with pytest.raises(InputError, match="one of the two"):
        p3select.embed(gsm8k, tmp_path / "run")
    for options in ({"text": "completion"}, {"engine": "ray"}):
        message = f"{next(iter(options.values()))}': is for an encoder; vectors made before are taken as they are"
        with pytest.raises(InputError, match=message):
            p3select.embed(gsm8k, tmp_path / "run", vectors=tmp_path / "few.npy", **options)


def test_near_duplicates_are_counted(tmp_path, gsm8k, monkeypatch):
    frame = pl.read_parquet(gsm8k)
    pl.concat([frame[:60], frame[:5], frame[100:110]]).write_parquet(tmp_path / "rows.parquet")
    assert p3select.embed(tmp_path / "rows.parquet", tmp_path / "run", FakeEncoder())["near_duplicates"] == 10
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 16)) + 3.0 * rng.normal(size=(20, 16))[rng.integers(0, 20, 3_000)]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -1.0)
    wanted = cosines.max(axis=1) > 0.98
    assert 20 < wanted.sum() < 2_900
    np.testing.assert_array_equal(embeddings.twins(x, 0.98), wanted)
    # By cells: none is wrongly found, few are missed.
    monkeypatch.setattr(embeddings, "COMPARED_ROWS", 1_000)
    found = embeddings.twins(x, 0.98)
    assert not (found & ~wanted).any()
    assert found.sum() > 0.97 * wanted.sum()


def test_the_search_for_near_duplicates_says_how_far_it_is(monkeypatch):
    x = np.random.default_rng(0).normal(size=(700, 16)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    whole = embeddings.nearest(x, 3)
    monkeypatch.setattr(embeddings, "SEARCHED_ROWS", 300)
    told = []
    embeddings.twins(x, advance=lambda *done: told.append(done))
    assert told == [(300, 0), (300, 0), (100, 0)]
    np.testing.assert_array_equal(embeddings.nearest(x, 3)[1], whole[1])
