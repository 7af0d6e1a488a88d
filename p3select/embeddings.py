"""Embeddings: dataset × encoder → unit rows, once for a run, memory-mapped."""

from __future__ import annotations

import shutil
import time
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p3select import distributed, fingerprints, plugins, progress, shards
from p3select.dataset import PARQUET, Dataset, Slice, load
from p3select.errors import InputError, MismatchError
from p3select.run import Run, read_json, write_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.shards import Shard

TEXTS = ("prompt", "completion", "both")
BUILTIN = {"sentence-transformers": ("p3select.encoders:SentenceTransformersEncoder", "hf")}
# Rows read, encoded and written at a time; within them texts are sorted by length.
BLOCK_ROWS = 2048
# A row with another one at a higher cosine counts as a near-duplicate.
TWIN = 0.95
# Rows up to which all are compared with all.
COMPARED_ROWS = 20_000
# Rows whose nearest ones are sought at a time.
SEARCHED_ROWS = 4_096
# Above, cells of an inverted file in which a row's nearest one is sought.
PROBES = 8


class Encoder(Protocol):
    """What embedding needs of a sentence encoder."""

    provenance: Mapping[str, str]
    """What the vectors depend on: encoder, name, revision, fingerprint, dtype, versions. Stored and compared."""

    dimension: int
    """Numbers in a vector."""

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Vectors (n, dimension), of any length, and how many texts were too long and were cut."""
        ...


def embed(
    data: str | Path | Sequence[str | Path] | Dataset,
    run: Run | str | Path,
    encoder: str | Path | Encoder | None = None,
    *,
    vectors: str | Path | None = None,
    text: str = "prompt",
    columns: Mapping[str, str] | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Unit-norm embeddings of every row, for the similarity of the DPP (stage III of P3).

    A call that was killed and is made again embeds only what is missing.

    Args:
        data: Parquet or JSON Lines; see :func:`p3select.dataset.load`.
        run: The run folder; ``embeddings/embeddings.npy``, float32 (n, d), goes there.
        encoder: A sentence-transformers model (local folder or Hugging Face id), or an Encoder; or else
        vectors: A file with the vectors of all rows, in their order: ``FILE.npy`` (n, d), or ``FILE.parquet:COLUMN`` of
            lists of numbers. They are divided by their norms.
        text: What of a row an encoder is given: ``prompt`` (as in the paper: all that is not the target),
            ``completion`` or ``both``.
        columns: Role → column name, where they are not the usual ones.
        engine: ``local`` or ``ray``, as for :func:`p3select.score`, like the next three.
        workers: With ``ray``: how many; None for as many as there are GPUs, or one.
        address: With ``ray``: a cluster's address; None for a Ray of this machine's own.
        gpus: With ``ray``: GPUs of a worker; None for one where there are any.
        overwrite: Embed anew where another encoder's vectors are.
        show_progress: Print rows/s and the time left on stderr.

    Returns:
        A summary: rows, dimension, truncated (texts that the encoder cut), empty (rows without text, which all have
        the same vector), near_duplicates (rows with another one at a cosine above ``TWIN``; above ``COMPARED_ROWS``
        rows at least so many), reused (whether the vectors were there), seconds.

    Raises:
        InputError: Bad data or encoder, or a text with a vector that is zero or not finite; it names the row.
        MismatchError: The folder holds other vectors.
    """
    start = time.monotonic()
    if text not in TEXTS:
        raise InputError(f"text {text!r}: one of {', '.join(TEXTS)}")
    dataset = load(data, columns)
    run = run if isinstance(run, Run) else Run(run)
    run.check(dataset)
    if (encoder is None) is (vectors is None):
        raise InputError("give an encoder, or vectors that it made before: one of the two")
    if vectors is not None and (text != "prompt" or engine != "local"):
        given = f"text {text!r}" if text != "prompt" else f"engine {engine!r}"
        raise InputError(f"{given}: is for an encoder; vectors made before are taken as they are, here")
    source = _Given(vectors, len(dataset)) if vectors is not None else encoder
    if engine != "local" and not isinstance(source, str | PathLike):
        raise InputError(f"engine {engine!r}: its workers load the encoder by name; give its name")
    if engine != "local":
        run, source = run.absolute(), distributed.everywhere(source)
    crew = distributed.crew(
        engine, Worker, {"encoder": source, "text": text}, workers=workers, address=address, gpus=gpus
    )
    try:
        run.bind(dataset)
        made = {"dataset": dataset.fingerprint, "text": text, "rows": len(dataset), **crew.ask("provenance")}
        known = _known(run)
        if known is not None and not overwrite:
            # A name that has a fingerprint beside it is for people.
            named = ("encoder", "revision") if "encoder_fingerprint" in made else ()
            changed = sorted(key for key in made if key not in named and made[key] != known.get(key))
            if changed:
                raise MismatchError(
                    f"{run.embeddings.parent} holds vectors made otherwise (differs in {', '.join(changed)}); "
                    "give another --run, or --overwrite to embed again"
                )
            return {**_brief(known), "reused": True, "seconds": time.monotonic() - start}
        folder, parts = run.embeddings.parent / "parts", shards.ranges(len(dataset), BLOCK_ROWS)
        shards.claim(folder, made, len(dataset), overwrite=overwrite)
        absent = shards.missing(folder, parts)
        done = len(dataset) - sum(part.rows for part in absent)
        with progress.track("embedding", len(dataset), done=done, show=show_progress) as advance:
            sources = ((folder, part, dataset.source(*part, here=engine == "local")) for part in absent)
            crew.each("embed", sources, advance)
    finally:
        crew.close()
    made |= _assemble(run, folder, parts)
    made["empty"] = sum(not _text(row, text).strip() for row in _each(dataset)) if vectors is None else 0
    with progress.track("near-duplicates", len(dataset), show=show_progress) as advance:
        found = twins(np.load(run.embeddings, mmap_mode="r"), advance=advance)
    made["near_duplicates"] = int(np.count_nonzero(found))
    write_json(_manifest(run), made)
    shutil.rmtree(folder)
    seconds = time.monotonic() - start
    run.spend("embed", 0, seconds)
    return {**_brief(made), "reused": False, "seconds": seconds}


class Worker:
    """Embeds shards, each into a file.

    Attributes:
        provenance: What the vectors depend on.
    """

    def __init__(self, encoder: str | Path | Encoder | _Given, text: str) -> None:
        self._encoder, self._text = _encoder(encoder), text
        self.provenance = {**self._encoder.provenance, "dimension": self._encoder.dimension}

    def embed(self, folder: Path, shard: Shard, source: Dataset | Slice, advance: Callable[[int, int], None]) -> None:
        """Write a shard: its rows' vectors, and how many of their texts were cut."""
        if isinstance(self._encoder, _Given):
            vectors, cut = self._encoder.array[shard.first : shard.stop], 0
        else:
            rows = source.read() if isinstance(source, Slice) else source
            vectors, cut = self._encoder.encode([_text(row, self._text) for row in rows.rows()])
        unit = _unit(vectors, shard.first, self._encoder.dimension)
        lists = pa.FixedSizeListArray.from_arrays(unit.ravel(), self._encoder.dimension)
        shards.write(folder, shard, pa.table({"vector": lists}, metadata={"cut": str(cut)}))
        advance(shard.rows, 0)


def _assemble(run: Run, folder: Path, parts: list[Shard]) -> dict[str, Any]:
    """One array of all shards, and what is known of it."""
    truncated = 0

    def write(path: Path) -> None:
        nonlocal truncated
        array = None
        for part in parts:
            table = shards.read(folder, [part])
            vectors = table.column("vector").combine_chunks()
            if array is None:
                shape = (parts[-1].stop, vectors.type.list_size)
                # The file keeps its .npy header whatever its temporary name is.
                array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            array[part.first : part.stop] = vectors.flatten().to_numpy().reshape(part.rows, -1)
            truncated += int(table.schema.metadata[b"cut"])
        assert array is not None  # a dataset has rows
        array.flush()
        # From here until the new manifest is written there are no embeddings, rather than some under a wrong name.
        _manifest(run).unlink(missing_ok=True)

    write_whole(run.embeddings, write)
    return {"truncated": truncated, "fingerprint": fingerprints.of_files(run.embeddings)}


def read(run: Run) -> tuple[NDArray[np.float32], str]:
    """A run's embeddings, memory-mapped, float32 (n, d), and their fingerprint.

    Raises:
        InputError: There are none, or they are not those that were written.
    """
    known = _known(run)
    if known is None:
        raise InputError(f"{run.path}: no embeddings; run 'p3select embed DATA --run {run.path} --encoder M' first")
    try:
        vectors = np.load(run.embeddings, mmap_mode="r")
    except (ValueError, OSError, EOFError):
        vectors = None
    if vectors is None or fingerprints.of_files(run.embeddings) != known["fingerprint"]:
        raise InputError(f"{run.embeddings}: damaged, or not what 'p3select embed' wrote; embed again with --overwrite")
    if len(vectors) != run.info()["dataset"]["rows"]:
        raise InputError(f"{run.embeddings}: {len(vectors)} rows, other data's; embed again with --overwrite")
    return vectors, str(known["fingerprint"])


def twins(
    vectors: NDArray[np.float32], cosine: float = TWIN, advance: Callable[[int, int], None] = progress.silent
) -> NDArray[np.bool_]:
    """Which rows have another one at a higher cosine, (n,).

    Args:
        vectors: (n, d) of norm 1.
        cosine: The threshold.
        advance: As for :func:`nearest`.
    """
    # The second best: the best is the row itself, or a copy of it.
    found: NDArray[np.bool_] = nearest(vectors, 2, advance)[0][:, 1] > cosine
    return found


def nearest(
    vectors: NDArray[np.float32], count: int, advance: Callable[[int, int], None] = progress.silent
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Every row's nearest rows, itself among them.

    Args:
        vectors: (n, d) of norm 1.
        count: How many.
        advance: Told the rows done since it was last called, and 0; see :func:`p3select.progress.track`.

    Returns:
        (cosines, rows): (n, count) by falling cosine; −1 as row, and a cosine below −1, where fewer were found. Up to
        ``COMPARED_ROWS`` rows exactly. Above, they are sought in the ``PROBES`` cells nearest to the row of an inverted
        file (FAISS, IndexIVFFlat): some may be missed.
    """
    import faiss

    n, d = vectors.shape
    index: Any = faiss.IndexFlatIP(d)
    if n > COMPARED_ROWS:
        cells = int(4 * np.sqrt(n))
        index = faiss.IndexIVFFlat(index, d, cells, faiss.METRIC_INNER_PRODUCT)
        drawn = np.random.default_rng(0).choice(n, min(n, 40 * cells), replace=False)
        index.train(np.ascontiguousarray(vectors[np.sort(drawn)], np.float32))
        index.nprobe = PROBES
    cosines, rows = np.empty((n, count), np.float32), np.empty((n, count), np.int64)
    blocks = [slice(first, first + SEARCHED_ROWS) for first in range(0, n, SEARCHED_ROWS)]
    for block in blocks:
        index.add(np.ascontiguousarray(vectors[block], np.float32))
    for block in blocks:
        cosines[block], rows[block] = index.search(np.ascontiguousarray(vectors[block], np.float32), count)
        advance(len(cosines[block]), 0)
    return cosines, rows


def _manifest(run: Run) -> Path:
    return run.embeddings.with_suffix(".json")


def _known(run: Run) -> dict[str, Any] | None:
    """The manifest of vectors that are there; without it (a killed call) they count as absent."""
    if not (_manifest(run).is_file() and run.embeddings.is_file()):
        return None
    return read_json(_manifest(run))


def _brief(manifest: dict[str, Any]) -> dict[str, Any]:
    return {key: manifest[key] for key in ("rows", "dimension", "truncated", "empty", "near_duplicates")}


def _each(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for part in shards.ranges(len(dataset), BLOCK_ROWS):
        yield from dataset.part(*part).rows()


class _Given:
    """Vectors that were made elsewhere, in the place of an encoder."""

    def __init__(self, vectors: str | Path, rows: int) -> None:
        text = str(vectors)
        before, _, column = text.rpartition(":")
        whole = Path(text).is_file() or not before
        path, column = (Path(text), "") if whole else (Path(before), column)
        if not path.is_file():
            raise InputError(f"vectors {text!r}: no such file; give FILE.npy or FILE.parquet:COLUMN")
        if (path.suffix.lower() in PARQUET) is not bool(column):
            what = "no Parquet file, and only those have columns" if column else "a Parquet file: name its column too"
            raise InputError(f"vectors {text!r}: {what}; give FILE.npy or FILE.parquet:COLUMN")
        self.array = _column(path, column) if column else _array(path)
        if len(self.array) != rows:
            raise InputError(f"vectors {text!r}: {len(self.array)} rows, and the dataset has {rows}")
        self.dimension = int(self.array.shape[1])
        self.provenance = {
            "encoder": path.name + (f":{column}" if column else ""),
            "encoder_fingerprint": fingerprints.of_files(path),
        }


def _array(path: Path) -> NDArray[np.floating]:
    try:
        # Not np.load: it takes archives and pickles for arrays, too.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"vectors {str(path)!r}: not readable as .npy: {error}; give an array of floats") from None
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{path}: an array of shape {array.shape} and {array.dtype}, not (rows, dimensions) of floats")
    return array


def _column(path: Path, column: str) -> NDArray[np.floating]:
    try:
        lists = pq.ParquetFile(path).read([column]).column(column)
        lengths = pc.list_value_length(lists).to_numpy()
        flat = pc.list_flatten(lists).to_numpy().astype(np.float32)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}, column {column!r}: no lists of numbers: {error}") from None
    bad = np.flatnonzero(~(lengths == (lengths[0] if len(lengths) else 0)))
    if bad.size or not len(lengths):
        raise InputError(
            f"{path}, column {column!r}: row {bad[0] if bad.size else 0} has no vector, or one of another length"
        )
    vectors: NDArray[np.float32] = flat.reshape(len(lengths), -1)
    return vectors


def _encoder(encoder: str | Path | Encoder | _Given) -> Encoder | _Given:
    if isinstance(encoder, str | PathLike):
        return cast("Encoder", plugins.find("encoder", "sentence-transformers", BUILTIN)(encoder))
    return encoder


def _text(row: dict[str, Any], text: str) -> str:
    """What of a row is embedded; a row that has no such text gives the empty string."""
    if "messages" in row:
        turns = row["messages"] if isinstance(row["messages"], list) else []
        prompt = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") != "assistant"]
        completion = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "assistant"]
    else:
        prompt, completion = row["prompt"], row["completion"]
    parts = {"prompt": [prompt], "completion": [completion], "both": [prompt, completion]}[text]
    return "\n".join(part for part in map(_words, parts) if part)


def _words(part: Any) -> str:
    if isinstance(part, str):
        return part
    turns = part if isinstance(part, list) else []
    return "\n".join(turn["content"] for turn in turns if isinstance(turn.get("content"), str))


def _unit(vectors: NDArray[np.float32], first: int, dimension: int) -> NDArray[np.float32]:
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise InputError(f"the encoder gave vectors of shape {vectors.shape}, not (rows, {dimension})")
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        raise InputError(
            f"row {first + bad[0]}: its embedding is zero or not finite (norm {norms[bad[0]]}); "
            "leave the row out or use another encoder"
        )
    unit: NDArray[np.float32] = (vectors / norms[:, None]).astype(np.float32)
    return unit
