"""The whole loop with the real model, encoder and trainer, on few rows."""

import polars as pl
import pytest

import p3select
from p3select import demo
from p3select.errors import InputError


@pytest.mark.slow
# The trainer's and the GGUF reader's own warnings are not ours.
@pytest.mark.filterwarnings("ignore")
def test_the_demo(tmp_path, gsm8k, smollm2, minilm, capsys):
    data = tmp_path / "rows.parquet"
    pl.read_parquet(gsm8k)[:20].write_parquet(data)
    out = tmp_path / "out"
    result = demo.demo(out, data=data, model=smollm2, encoder=minilm)
    first, second = result["epochs"]
    assert (first["eligible"], second["eligible"]) == (10, 19)
    assert first["scores"]["model"] != second["scores"]["model"]
    # Trained on the selected rows: these, at least, have become easier.
    rows = pl.read_parquet(out / "run" / "index" / "epoch-001.parquet")["row"].to_list()
    scores = [pl.read_parquet(out / "run" / "scores" / f"epoch-00{epoch}" / "*.parquet") for epoch in (1, 2)]
    assert scores[1]["difficulty"][rows].mean() < scores[0]["difficulty"][rows].mean()
    assert sorted(pl.read_parquet(out / "epoch-001" / "train.parquet")["id"]) == sorted(
        pl.read_parquet(data)["id"][rows]
    )
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    printed, said = capsys.readouterr()
    assert "'loss'" not in printed
    assert "Fine-tuning on the 2 selected rows" in said
    for words in (
        "λ",
        "eligible rows",
        "mean difficulty, all",
        "mean difficulty, eligible",
        "mean difficulty, selected",
        "same rows as the epoch before",
        "seconds, scoring",
        "seconds, embedding",
        "seconds, selection",
        "seconds, training",
        "p3select score  YOUR.parquet",
        f"p3select report  --run {out / 'run'} --out report.html",
    ):
        assert words in printed
    page = p3select.report(out / "run", out=tmp_path / "report.html")
    assert page["Choosing costs too much beside training"] != "cannot be told"
    # Again, over the earlier one; but never over anybody else's files.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(InputError, match="not an earlier demo's"):
        demo.demo(tmp_path / "mine", data=data, model=smollm2, encoder=minilm)
    with pytest.raises(InputError, match=r"gone\.parquet"):
        demo.demo(out, data=tmp_path / "gone.parquet", model=smollm2, encoder=minilm)
    assert (out / "demo.png").exists()


def test_the_packaged_models_are_found():
    assert demo.packaged_model().suffix == ".gguf"
    assert (demo.packaged_encoder() / "modules.json").is_file()
