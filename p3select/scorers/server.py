"""The scorer ``server``: a running vLLM server, asked over its OpenAI-compatible API.

Rows go out as token ids to ``/completions`` with ``prompt_logprobs`` (vLLM's own addition to that API), several rows
in a request and several requests at a time. Every answer is checked against what was sent: the ids at each position,
and a finite log-probability at each scored one.

A server does not say what its weights are, and files do not prove it: they may have been replaced since it started.
So what it gives for a few rows is compared with what transformers computes from the model's weights. Where these are
not here, ``provenance`` says that nothing was verified, and what is scored is taken over nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from p3select import progress
from p3select.errors import InputError, P3Error, RowError
from p3select.run import read_json
from p3select.scorers import trial
from p3select.scorers.checkpoints import (
    DTYPES,
    adapter_weights,
    check_rows,
    describe,
    empty,
    files,
    first_line,
    of_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Ids = Sequence[NDArray[np.int32]]
    Values = list[NDArray[np.float32]]

KEY = "P3SELECT_API_KEY"
# Requests at a time, and tokens of a request but for a longer row: enough in flight to fill a GPU's steps, few enough
# that the last one is answered in time by a CPU. A row has two tokens: never more rows than the 1024 that vLLM takes.
CONCURRENCY = 16
REQUEST_TOKENS = 2048
# Seconds for an answer; and for a connection and the server's first answer.
TIMEOUT = 300.0
CONNECT = 10.0
# With these, a server may be away for a minute and a half.
RETRIES = 7
FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
# vLLM writes this for minus infinity.
_NOTHING = -9999.0
# Rounding lifts the logarithm of a probability of 1 above 0 by less.
_ROUNDING = 1e-3
# Nats in the mean between two answers for the same row.
_TWICE = 0.05
# Seconds that a server takes at least to come to its weights; when it started is known to about one.
_READS = 2.0
# Not the module's own generator: users seed that one.
_JITTER = random.Random()


class ServerScorer:
    """Log-probabilities from a running vLLM server.

    The key, where the server wants one, is read from the environment (``P3SELECT_API_KEY``) and kept nowhere.

    Args:
        model: The policy that is served: its local folder or its Hugging Face id. Its tokenizer is used.
        server: The server's address, such as ``http://127.0.0.1:8000/v1``. It must be given.
        tokenizer: A tokenizer, its folder or its id, where it is not the model's own.
        adapter: Refused: an adapter is loaded by the server, which gives it a name.
        name: What the server calls the model or the adapter to score with. None for the model with the id or the
            folder ``model``, or for the only one.
        dtype: What the server computes in, where that is known: with ``float32`` the comparison is exact.
        compare: Whether to compare what the server gives with what transformers computes from the model's weights,
            which are for that loaded into this machine's memory for a moment, in float32. It is not done where they are
            not here.
        concurrency: Requests at a time.
        timeout: Seconds to wait for an answer.
        retries: How often a request is made again after status 429 or 5xx, a broken connection or a time-out, each
            time after a longer wait, or the one that the server asks for.
        max_length: The longest row to accept, where that is less than the server's own limit.

    Attributes:
        tokenizer: The tokenizer.
        max_length: Tokens of the longest row that the server takes; None where it does not say.
        provenance: What the numbers depend on, as far as it is known; ``verified`` is False where nothing, or no
            more than half precision's rounding allows, says that the server has the model's weights.
        notes: What could not be checked, one sentence each.

    Raises:
        InputError: Nothing answers there, it does not serve the model, its weights or its tokenizer are others, it
            gives no log-probabilities of prompts, other ones than the model's weights, or other ones for the same row
            a second time.
        P3Error: The server fails on and on.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        server: str | None = None,
        tokenizer: Any = None,
        adapter: str | Path | None = None,
        name: str | None = None,
        dtype: str | None = None,
        compare: bool = True,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        max_length: int | None = None,
    ) -> None:
        if adapter is not None:
            raise _for_the_server(Path(adapter))
        if server is None:
            raise InputError("the scorer server needs an address: give --server http://127.0.0.1:8000/v1")
        if concurrency < 1 or retries < 0 or not timeout > 0:
            raise InputError(
                f"concurrency {concurrency}, retries {retries}, timeout {timeout}: at least 1, at least 0, more than 0"
            )
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
        self.notes: list[str] = []
        self._options = (server, timeout, retries)
        self._dtype = dtype
        self._concurrency = concurrency
        with closing(_Client(*self._options)) as client:
            cards = _cards(client)
            card = _chosen(cards, str(model), name, client.url)
            base = _base(cards, card)
            self._name: str = card["id"]
            self.max_length = _longest(base, max_length)
            config, self.tokenizer, own = describe(model, tokenizer)
            self._vocabulary = int(config.get_text_config().vocab_size)
            self._compare_tokenizers(client)
            root = str(base.get("root") or base["id"])
            weights = _weights(Path(model), own, root)
            folder, changes = (None, "none") if base is card else _adapter(config, card)
            untold = _untold(model, compare, base is card or folder is not None)
            why = untold or _unsure(str(model), root, dtype, client)
            if why:
                self.notes.append(
                    f"what weights the server has as {self._name!r} was not verified, as {why}: see to it that it has "
                    "those of this epoch; nothing that is scored so is taken over by other epochs or runs"
                )
                progress.say(f"note: {self.notes[-1]}")
            self.provenance: Mapping[str, str | bool] = {
                "scorer": "server",
                "model": weights,
                "adapter": changes,
                "dtype": dtype or "as served",
                "served": self._name,
                "root": root,
                "server": _version(client),
                "max_model_len": str(base.get("max_model_len") or "unknown"),
                "verified": not why,
            }
            self._trial = trial.rows(self.tokenizer, self._vocabulary, self.max_length)
            self._ask_twice(client)
            if not untold:
                self._compare(client, files(model), config, folder, base["id"])

    def score(self, ids: Ids, scored: Ids, advance: Callable[[int, int], None]) -> Values:
        """Log-probabilities of chosen tokens, each given all the tokens before it in its row.

        Args:
            ids: One array (length,) of token ids per row, each length from 2 to ``max_length``.
            scored: One array (m,) per row: the positions to score, ascending, each at least 1.
            advance: Called with (rows, tokens) as they are done, in the caller's thread.

        Returns:
            One float32 array (m,) per row, in the order given: log p(ids[i] | ids[:i]) in nats for i in scored.

        Raises:
            InputError: A token that the model does not have, a row longer than ``max_length``, positions out of
                range, what the server refuses, or an answer that lacks a log-probability, has one that is not finite,
                or is about other ids.
            P3Error: The server fails on and on.
        """
        check_rows(ids, scored, self.max_length, self._vocabulary)
        values: dict[int, NDArray[np.float32]] = {}
        with closing(_Client(*self._options, met=True)) as client, ThreadPoolExecutor(self._concurrency) as pool:
            futures = {pool.submit(self._scored, client, ids, scored, rows): rows for rows in _requests(ids)}
            try:
                for future in as_completed(futures):
                    rows = futures[future]
                    values.update(zip(rows, future.result(), strict=True))
                    advance(len(rows), sum(len(ids[row]) for row in rows))
            except BaseException:
                client.stop()
                raise
        return [values[row] for row in range(len(ids))]

    def _scored(self, client: _Client, ids: Ids, scored: Ids, rows: list[int], name: str | None = None) -> Values:
        """One request, for these rows; of another of the server's models where it is named."""
        where = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]}"
        where = f"{where} of the {len(ids)} to score"
        body = {
            "model": name or self._name,
            "prompt": [ids[row].tolist() for row in rows],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        answer = client.demand("/completions", body, where)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or [_field(choice, "index") for choice in choices] != list(range(len(rows))):
            raise InputError(f"{client.url}: {where}: not one answer for each row; it must be a vLLM server")
        return [
            _values(_field(choice, "prompt_logprobs"), ids[row], scored[row], row)
            for choice, row in zip(choices, rows, strict=True)
        ]

    def _compare_tokenizers(self, client: _Client) -> None:
        """Refuse a tokenizer that gives other ids than the server's."""
        text = "".join(trial.TEXTS)
        own = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        body = {"model": self._name, "prompt": text, "add_special_tokens": False}
        status, answer = client.ask("/tokenize", body, beside=True)
        if status != 200:
            self.notes.append(f"the server has no /tokenize (HTTP {status}): whether its tokenizer is this one is open")
        elif _field(answer, "tokens") != own:
            raise InputError(
                f"{client.url}: its tokenizer for {self._name!r} gives other ids than the one that is used here; give "
                "the folder or the id of the model that is served"
            )

    def _ask_twice(self, client: _Client) -> None:
        """Score a row, and again after another that begins like it: what a cache does to it shows then."""
        ids, scored = self._trial
        number = int(np.argmax([*map(len, ids)]))
        row, places = ids[number], scored[number]
        half = len(row) // 2
        other = np.concatenate([row[:half], row[half:][::-1]])
        first = self._scored(client, [row], [places], [0])[0]
        again = self._scored(client, [other, row], [places, places], [0, 1])[1]
        apart = float(np.abs(first - again).mean())
        if apart > _TWICE:
            raise InputError(
                f"{client.url}: the same row twice has log-probabilities {apart:.2g} nats apart in the mean; start the "
                "server without prefix caching, or with another vLLM"
            )

    def _compare(self, client: _Client, model: Path, config: Any, adapter: Path | None, base: str) -> None:
        """Refuse a server whose log-probabilities are not those of the weights in a folder or a file.

        Args:
            client: The server.
            model: Where the weights are.
            config: The model's configuration.
            adapter: The folder of the served adapter; None for none.
            base: What the server calls the model without it.
        """
        progress.say(f"comparing the server with the weights in {model} on a few rows …")
        ids, scored = self._trial
        rows = list(range(trial.compared(scored, self._dtype)))
        ids, scored = ids[: len(rows)], scored[: len(rows)]
        expected, bare = trial.by_transformers(model, config, adapter, self._dtype, ids, scored)
        values = self._scored(client, ids, scored, rows)
        wrong = trial.apart(values, expected, "those of the model's weights", self._dtype)
        if bare and not wrong:
            without = self._scored(client, ids, scored, rows, base)
            wrong, note = trial.change("the server", "the adapter", (without, values), (bare, expected))
            self.notes += [note] if note else []
        if wrong:
            raise InputError(
                f"{client.url}: {wrong}; restart it with this checkpoint ({model}), or score without this check: "
                "option compare=false"
            )


class _Client:
    """A server over HTTP: a kept connection per thread, and requests made again where what is wrong may pass."""

    def __init__(self, server: str, timeout: float, retries: int, *, met: bool = False) -> None:
        """With ``met`` the server has answered before, so that a connection refused may be a restart."""
        self.url = server.rstrip("/")
        self._kind, self._place, self._path = _address(self.url)
        self._timeout, self._retries, self._met = timeout, retries, met
        self._own = threading.local()
        self._lock = threading.Lock()
        self._connections: list[http.client.HTTPConnection] = []
        self._sockets: set[socket.socket] = set()
        self._stopped = threading.Event()

    def demand(self, path: str, body: Any = None, what: str = "") -> Any:
        """The JSON of an answer that must be there; ``what`` says in an error what it was to be about."""
        status, answer = self.ask(path, body, what)
        if status == 200:
            return answer
        about = f" ({what})" if what else ""
        if status in (401, 403):
            have = "is not accepted" if _key() else "is not set"
            raise InputError(f"{self.url}: HTTP {status}: it wants a key, and the environment variable {KEY} {have}")
        hint = "" if status != 404 or self._path.endswith("/v1") else "; a vLLM server's address ends in /v1"
        raise InputError(f"{self.url}{path}{about}: HTTP {status}: {answer}{hint}")

    def ask(
        self,
        path: str,
        body: Any = None,
        what: str = "",
        *,
        beside: bool = False,
        once: bool = False,
        parse: Callable[[bytes], Any] = json.loads,
    ) -> tuple[int, Any]:
        """The status and the JSON of an answer; of another status than 200 what the server says about it.

        Args:
            path: After the server's address; or where ``beside``, in the place of its ``/v1``.
            body: JSON to post; None to get.
            what: For an error's message, what the answer was to be about.
            beside: See ``path``.
            once: Do not ask again.
            parse: What reads an answer that is no JSON.
        """
        full, url = (root.removesuffix("/v1") + path if beside else root + path for root in (self._path, self.url))
        data = None if body is None else json.dumps(body).encode()
        attempts = 1 if once else self._retries + 1
        for attempt in range(attempts):
            told = 0.0
            try:
                status, wait, content = self._once(full, data)
                self._met = True
                if status == 200:
                    return status, parse(content)
                if not _passing(status):
                    return status, _said(content)
                why, told = f"HTTP {status}: {_said(content)}", _seconds(wait)
            except TimeoutError:
                why = f"no answer in {self._patience():g} s (a higher timeout or a lower concurrency may help)"
            except (OSError, http.client.HTTPException, json.JSONDecodeError, UnicodeDecodeError) as error:
                why = f"{type(error).__name__}: {first_line(error)}"
            if told > self._timeout:
                why += f" (and to come again in {told:.0f} s)"
                break
            if attempt + 1 < attempts:
                wait_for = _JITTER.uniform(0.5, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
                self._stopped.wait(max(told, wait_for))
        about = f" ({what})" if what else ""
        raise P3Error(
            f"{url}{about}: given up at attempt {attempt + 1} of {attempts}: {why}; "
            "what is finished stays: see to the server and make the same call again"
        )

    def stop(self) -> None:
        """Let the threads that wait for the server fail at once."""
        self._stopped.set()
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections; no thread may be using them."""
        for connection in self._connections:
            connection.close()

    def _once(self, path: str, data: bytes | None) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and content of the answer to one attempt."""
        connection = self._connected()
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request("GET" if data is None else "POST", path, data, headers)
            with connection.getresponse() as response:
                return response.status, response.headers.get("Retry-After"), response.read()
        except BaseException:
            connection.close()
            raise

    def _connected(self) -> http.client.HTTPConnection:
        """This thread's connection, open."""
        if self._stopped.is_set():
            raise CancelledError
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._kind(*self._place, timeout=CONNECT)
            with self._lock:
                self._connections.append(connection)
        if connection.sock is None:
            old, self._own.socket = getattr(self._own, "socket", None), self._open(connection)
            with self._lock:
                self._sockets.discard(old)
                self._sockets.add(self._own.socket)
        if self._stopped.is_set():
            raise CancelledError
        self._own.socket.settimeout(self._patience())
        return connection

    def _open(self, connection: http.client.HTTPConnection) -> socket.socket:
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            if self._met:
                raise ConnectionError(first_line(error)) from error
            raise InputError(
                f"{self.url}: {first_line(error)}; start a server there (vllm serve MODEL) or give its address"
            ) from None
        return connection.sock

    def _patience(self) -> float:
        """Seconds to wait for an answer: whoever has not said a word yet may be no server of this kind."""
        return self._timeout if self._met else min(self._timeout, CONNECT)


def _address(server: str) -> tuple[type[http.client.HTTPConnection], tuple[str, int], str]:
    """The kind of connection, host and port, and the path."""
    if "@" in server:
        raise InputError(f"the server's address holds a user or a password: leave them out, and set {KEY}")
    try:
        parts = urlsplit(server)
        place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except ValueError:
        place = ("", 0)
    if not (place[0] and re.fullmatch(r"https?://[!-~]+", server)) or parts.query or parts.fragment:
        known = server.partition("?")[0]
        raise InputError(f"server {known!r}: give an address like http://127.0.0.1:8000/v1")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind, place, parts.path


def _key() -> str | None:
    """The server's key. It is read where it is sent, so that nothing holds it that could be stored or printed."""
    key = os.environ.get(KEY)
    if key and not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"the environment variable {KEY} holds a character that no key has (a space, a line break?)")
    return key or None


def _passing(status: int) -> bool:
    """Whether the same request may go well later."""
    return status in (408, 425, 429) or (status >= 500 and status != 501)


def _seconds(after: str | None) -> float:
    """A Retry-After header, a number or a date, in seconds from now."""
    if after is None:
        return 0.0
    if after.strip().isdecimal():
        return float(after)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    return 0.0


def _said(content: bytes) -> str:
    """What the server says of an error, in one line."""
    answer: Any = content.decode(errors="replace")
    with suppress(ValueError):
        answer = json.loads(content)
    for name in ("error", "message", "detail"):
        answer = _field(answer, name) or answer
    text = " ".join(str(answer).split())
    if key := _key():
        text = text.replace(key, "…")
    return text[:300] or "no reason given"


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _cards(client: _Client) -> list[dict[str, Any]]:
    """What the server says of each of its models and adapters."""
    cards = _field(client.demand("/models"), "data")
    if not isinstance(cards, list) or not cards or not all(isinstance(_field(card, "id"), str) for card in cards):
        raise InputError(f"{client.url}/models: no list of models there; give the address of a vLLM server")
    return cards


def _version(client: _Client) -> str:
    status, answer = client.ask("/version", beside=True)
    return str((_field(answer, "version") if status == 200 else None) or "unknown")


def _started(client: _Client) -> float | None:
    """When the server's process started, in seconds since 1970; None where it does not say."""
    try:
        status, text = client.ask("/metrics", beside=True, once=True, parse=lambda content: content.decode("latin-1"))
    except P3Error:  # a gateway that does not pass it on
        return None
    told = re.search(r"^process_start_time_seconds(?:{.*})? (\S+)$", text, re.MULTILINE)
    return float(told[1]) if status == 200 and told else None


def _chosen(cards: list[dict[str, Any]], model: str, name: str | None, url: str) -> dict[str, Any]:
    """The model or adapter to score with."""
    found = [card for card in cards if name in (None, card["id"])]
    if name is None and len(found) > 1:
        # Several names of one model have the same root.
        found = [card for card in cards if _same(model, card["id"]) or _same(model, str(card.get("root")))]
    if not found:
        names = ", ".join(repr(card["id"]) for card in cards)
        raise InputError(f"{url}: it serves {names} and not {name or model!r}; give one of these names")
    return found[0]


def _same(model: str, other: str) -> bool:
    return model == other or (Path(model).exists() and Path(other).exists() and Path(model).samefile(other))


def _base(cards: list[dict[str, Any]], card: dict[str, Any]) -> dict[str, Any]:
    """The model that an adapter is on; a model itself."""
    parent = card.get("parent")
    return next((other for other in cards if other["id"] == parent), {"id": parent}) if parent else card


def _longest(base: dict[str, Any], max_length: int | None) -> int | None:
    """Tokens of the longest row: one less than the server's limit, for it writes a token after each."""
    limit = base.get("max_model_len")
    own = limit - 1 if isinstance(limit, int) else None
    if max_length is not None and not 2 <= max_length <= (own or max_length):
        raise InputError(f"max_length {max_length}: the server takes 2 to {own or 'any number of'} tokens")
    return own if max_length is None else max_length


def _adapter(config: Any, card: dict[str, Any]) -> tuple[Path | None, str]:
    """What is known of a served adapter: its folder, where that is here, and its identity."""
    folder = Path(str(card.get("root")))
    if not (folder.is_absolute() and folder.is_dir()):
        return None, f"{card['id']} as served"
    # vLLM leaves out what an adapter does to the head, without a word: such a one is refused.
    return folder, adapter_weights(empty(config), folder)[1]


def _for_the_server(folder: Path) -> InputError:
    """How to have an adapter served."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return InputError(f"adapter {folder}: no adapter_config.json there")
    about = read_json(file)
    targets = about.get("target_modules")
    # What vLLM wraps beyond these, the head above all, has had faults with log-probabilities of prompts.
    named = " ".join(sorted(targets)) if isinstance(targets, list) else "MODULE …"
    rank = max([8, *(about.get("rank_pattern") or {}).values(), about.get("r") or 8])
    return InputError(
        f"adapter {folder}: a server loads its adapters itself: start it with --enable-lora --max-lora-rank "
        f"{1 << (rank - 1).bit_length()} --lora-target-modules {named} --lora-modules NAME={folder}, and give --option "
        "name=NAME here instead of the adapter"
    )


def _weights(model: Path, own: str, root: str) -> str:
    """An identity of the served weights: that of the model's, which a comparison has to confirm; else the server's.

    Args:
        model: The policy.
        own: Its fingerprint.
        root: The served model's folder or id, as the server says.
    """
    here, served = files(model), _served(root)
    if not _has_weights(here):
        return f"{root} as served" if model.is_dir() else own
    if served and not served.samefile(here) and of_path(served) != (own if model.exists() else of_path(here)):
        raise InputError(f"the server has the weights of {root}, and those of {model} are others; serve {model}")
    return own


def _served(root: str) -> Path | None:
    """The folder with weights that a server was started with, where it is here."""
    folder = Path(root)
    return folder if folder.is_absolute() and folder.is_dir() and _has_weights(folder) else None


def _untold(model: str | Path, compare: bool, adapter: bool) -> str:
    """Why there is nothing to compare the server with; empty where there is. ``adapter``: what it applies is here."""
    if not compare:
        return "compare=false was given"
    if not _has_weights(files(model)):
        return f"the weights of {model} are not here"
    return "" if adapter else "the files of its adapter are not here"


def _unsure(model: str, root: str, dtype: str | None, client: _Client) -> str:
    """Why numbers that agree do not tell whose they are; empty where they do."""
    if dtype == "float32":
        return ""
    # What is here was compared file by file, and is what the server has read if it has not changed since.
    here = Path(model) if _same(model, root) else _served(root)
    if here is None:
        why = f"it names them {root!r}"
    elif (started := _started(client)) is not None and (place := _changed(here, started + _READS)) is not None:
        why = f"{place} was changed after it had started (restart it)"
    else:
        return ""
    return (
        f"{why}, and weights a few training steps from those of {model} would agree as well within the rounding of "
        "half precision (for a server in float32, give option dtype=float32)"
    )


def _changed(place: Path, since: float) -> Path | None:
    """What of weights, their folder or a link to them was changed since then, in seconds since 1970."""
    if not place.exists():
        return None
    # Not the time of the content, which a copy may keep.
    for path in _weights_in(place) if place.is_dir() else [place]:
        if max(path.stat().st_ctime, path.lstat().st_ctime) > since:
            return path
    # The folder may have been moved there as a whole; files that come or go change its other time, too.
    about = place.stat()
    moved = about.st_ctime > since >= about.st_mtime or (place.is_symlink() and place.lstat().st_ctime > since)
    return place if moved else None


def _weights_in(folder: Path) -> list[Path]:
    return [file for kind in ("*.safetensors", "*model*.bin") for file in folder.glob(kind)]


def _has_weights(place: Path) -> bool:
    return place.is_file() or bool(_weights_in(place))


def _requests(ids: Ids) -> list[list[int]]:
    """Rows cut into requests, in order."""
    requests: list[list[int]] = []
    held = 0
    for row, tokens in enumerate(ids):
        if requests and held + len(tokens) <= REQUEST_TOKENS:
            requests[-1].append(row)
            held += len(tokens)
        else:
            requests.append([row])
            held = len(tokens)
    return requests


def _values(entries: Any, ids: NDArray[np.int32], scored: NDArray[np.int32], row: int) -> NDArray[np.float32]:
    """The log-probabilities of one row: of each position, the server gives {id: {"logprob": …}}."""
    tokens = ids.tolist()
    if not isinstance(entries, list) or len(entries) != len(tokens):
        found = f"{len(entries)} log-probabilities" if isinstance(entries, list) else "no prompt_logprobs"
        raise RowError(row, f"the server returns {found} for {len(tokens)} tokens; it must be a vLLM server")
    for place in range(1, len(tokens)):
        if _field(entries[place], str(tokens[place])) is None:
            raise RowError(row, f"what the server returns at position {place} is not of token {tokens[place]}")
    raw = [_field(entries[place][str(tokens[place])], "logprob") for place in scored.tolist()]
    values = np.array([value if isinstance(value, (int, float)) else np.nan for value in raw], np.float64)
    wrong = ~((values > _NOTHING) & (values < _ROUNDING))
    if wrong.any():
        place = int(scored[wrong][0])
        raise RowError(
            row,
            f"the server returns {raw[int(wrong.argmax())]} for token {tokens[place]} at position {place}, which is no "
            "log-probability; check its weights and its dtype",
        )
    return values.astype(np.float32)
