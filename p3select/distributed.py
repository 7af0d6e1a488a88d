"""The same work here or on Ray: a crew does one method of its workers for many items.

A worker is an object made by a factory; what it makes, it writes itself, whole or not at all. So a crew passes
descriptors out and counts back, and nothing else moves.
"""

from __future__ import annotations

import os
import re
import socket
import traceback
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from p3select import progress
from p3select.errors import EngineError, InputError, MismatchError, MissingLibraryError, P3Error
from p3select.shards import Shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ENGINES = ("local", "ray")

# Ray's defaults are infinite: an item that kills its worker would do so for ever.
RESTARTS = 4
RETRIES = 2

PATIENCE = 60
"""Seconds of waiting for workers after which a line says so."""


class Crew(Protocol):
    """Workers that are there to be given items."""

    def ask(self, attribute: str) -> Any:
        """What a worker's attribute is. All workers must agree on it, one that is started again later too."""
        ...

    def gather(self, attribute: str) -> list[Any]:
        """What it is for each worker."""
        ...

    def told(self, attribute: str) -> list[Any]:
        """What it is for each worker that answers soon: when all is done, none is worth waiting for."""
        ...

    def each(
        self, method: str, items: Iterable[tuple[Any, ...]], advance: Callable[[int, int], None] | None = None
    ) -> None:
        """Call a worker's method for each item.

        Args:
            method: Its name. It takes an item's values and a function ``advance(rows, tokens)``, for progress.
            items: Arguments, one tuple a call.
            advance: Called with the (rows, tokens) that are done.
        """
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


def crew(
    engine: str,
    factory: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    workers: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
) -> Crew:
    """Workers, here or on Ray.

    Args:
        engine: ``local``: one worker in this process; or ``ray``.
        factory: Makes a worker; on Ray, in each worker's own process.
        arguments: What the factory is given.
        workers: How many, on Ray; None for as many as the cluster has GPUs for, or one where it has none.
        address: Of a Ray cluster, such as ``auto``; None for a Ray of this machine's own, or for the cluster that
            the environment variable RAY_ADDRESS names.
        gpus: GPUs of a worker, on Ray; None for one where the cluster has any.

    Raises:
        InputError: An unknown engine, options that it does not have, or more than the cluster can give.
        MissingLibraryError: Ray is not installed.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: one of {', '.join(ENGINES)}")
    if engine == "local":
        given = {"workers": workers, "address": address, "gpus": gpus}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} {value}: is for engine 'ray' alone; engine 'local' is one worker, here")
        return _Here(factory(**arguments))
    return _Actors(factory, arguments, workers, address, gpus)


class _Here:
    """One worker, in this process."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def ask(self, attribute: str) -> Any:
        return getattr(self._worker, attribute)

    def gather(self, attribute: str) -> list[Any]:
        return [getattr(self._worker, attribute)]

    told = gather

    def each(
        self, method: str, items: Iterable[tuple[Any, ...]], advance: Callable[[int, int], None] | None = None
    ) -> None:
        for item in items:
            getattr(self._worker, method)(*item, advance or progress.silent)

    def close(self) -> None:
        if hasattr(self._worker, "close"):
            self._worker.close()


class _Actor:
    """A worker in a process of Ray's. An error is a result: what is to be tried again is not for Ray to say."""

    def __init__(self, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._error: Exception | None = None
        self._broken = False
        try:
            self._worker = factory(**arguments)
        except Exception as error:
            self._error = _told(error)

    def ask(self, attribute: str) -> tuple[Any, Exception | None]:
        return (None, self._error) if self._error else (getattr(self._worker, attribute), None)

    def call(self, method: str, item: tuple[Any, ...], agreed: Mapping[str, Any]) -> tuple[int, int, Exception | None]:
        if self._error:
            return 0, 0, self._error
        if self._broken:
            os._exit(1)  # Ray starts the process again, and gives it this call
        for name, value in agreed.items():
            # It may have been started anew on another machine, or after the model's files were replaced.
            if (own := getattr(self._worker, name)) != value:
                return 0, 0, MismatchError(_differing(value, own))
        rows = tokens = 0

        def count(more_rows: int, more_tokens: int) -> None:
            nonlocal rows, tokens
            rows += more_rows
            tokens += more_tokens

        try:
            getattr(self._worker, method)(*item, count)
        except Exception as error:
            self._broken = isinstance(error, EngineError)
            where = "".join(f" of rows {part.first} to {part.stop - 1}" for part in item if isinstance(part, Shard))
            return 0, 0, _told(error, f"{method}{where}: ")
        return rows, tokens, None


class _Actors:
    """Workers as actors of Ray, each with its share of the machine."""

    def __init__(
        self,
        factory: Callable[..., Any],
        arguments: Mapping[str, Any],
        workers: int | None,
        address: str | None,
        gpus: float | None,
    ) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingLibraryError("engine 'ray'", "ray", "ray") from None
        self._ray = ray
        self._started = not ray.is_initialized()
        self._actors: list[Any] = []
        self._agreed: dict[str, Any] = {}
        if self._started:
            _start(ray, address)
        try:
            self._actors = self._make(factory, arguments, *self._shares(workers, gpus))
        except BaseException:
            self.close()
            raise

    def _shares(self, workers: int | None, gpus: float | None) -> tuple[int, float, float]:
        """Workers, and the GPUs and cores of each."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        devices, cores = ([node.get(kind, 0.0) for node in nodes] for kind in ("GPU", "CPU"))
        if gpus is None:
            gpus = 1.0 if sum(devices) else 0.0
        if gpus < 0 or gpus > max(devices) or (gpus > 1 and gpus % 1):
            raise InputError(
                f"{gpus:g} GPUs a worker: give a part of one or a whole number; the cluster has {_listed(devices)}"
            )
        room = sum(_workers_on(held, gpus) for held in devices) if gpus else None
        if workers is None:
            workers = room or 1
        if workers < 1:
            raise InputError(f"workers {workers}: at least 1")
        # Where a GPU does the work, the cores are left to others.
        share = 0.0 if gpus else cores_of_each(workers, cores)
        if share is None or (room is not None and workers > room):
            raise InputError(
                f"{workers} workers of {f'{gpus:g} GPUs' if gpus else 'a core at least'}: the cluster has "
                f"{_listed(devices)} GPUs and {_listed(cores)} cores"
            )
        self._asked = f"{workers} of {share:g} cores" + (f" and {gpus:g} GPUs" if gpus else "")
        return workers, gpus, share

    def _make(
        self, factory: Callable[..., Any], arguments: Mapping[str, Any], workers: int, gpus: float, cores: float
    ) -> list[Any]:
        kind = self._ray.remote(_Actor).options(
            num_cpus=cores, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RETRIES
        )
        return [kind.remote(factory, dict(arguments)) for _ in range(workers)]

    def ask(self, attribute: str) -> Any:
        first, *others = self.gather(attribute)
        for value in others:
            if value != first:
                raise InputError(_differing(first, value))
        self._agreed[attribute] = first
        return first

    def gather(self, attribute: str) -> list[Any]:
        asked = waiting = [actor.ask.remote(attribute) for actor in self._actors]
        while waiting:
            ready, waiting = self._ray.wait(waiting, num_returns=1, timeout=PATIENCE)
            if not ready:
                progress.say(
                    f"waiting for {len(waiting)} of the workers asked for ({self._asked}): they are loading, or the "
                    "cluster has no room for them now"
                )
            for _, error in self._get(ready):
                if error is not None:
                    raise error
        return [value for value, _ in self._get(asked)]

    def told(self, attribute: str) -> list[Any]:
        asked = [actor.ask.remote(attribute) for actor in self._actors]
        ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=PATIENCE)
        found = []
        for one in ready:
            with suppress(P3Error):
                value, error = self._get([one])[0]
                found += [] if error else [value]
        return found

    def each(
        self, method: str, items: Iterable[tuple[Any, ...]], advance: Callable[[int, int], None] | None = None
    ) -> None:
        waiting = ((item, 0) for item in items)
        again: list[tuple[tuple[Any, ...], int]] = []
        idle, running = list(self._actors), {}
        failed: Exception | None = None
        while True:
            # After a failure what is being done is done to its end: finished shards stay.
            while idle and failed is None and (given := again.pop() if again else next(waiting, None)) is not None:
                actor = idle.pop()
                running[actor.call.remote(method, given[0], self._agreed)] = (actor, *given)
            if not running:
                break
            while not (done := self._ray.wait(list(running), num_returns=1, timeout=10 * PATIENCE)[0]):
                progress.say(
                    f"nothing was finished for {progress.left(10 * PATIENCE)}: a worker has much to do, or is to be "
                    "started again where the cluster has no room"
                )
            actor, item, tries = running.pop(done[0])
            try:
                rows, tokens, error = self._get(done)[0]
            except P3Error as died:
                failed = failed or died
                continue
            idle.append(actor)
            if error is None:
                (advance or progress.silent)(rows, tokens)
            elif isinstance(error, EngineError) and tries < RETRIES:
                progress.say(f"{error}; the worker is started again")
                again.append((item, tries + 1))
            else:
                failed = failed or error
        if failed is not None:
            raise failed

    def _get(self, references: Sequence[Any]) -> list[Any]:
        try:
            found: list[Any] = self._ray.get(list(references))
        except self._ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                raise P3Error(
                    "a worker could not start; are p3select and its libraries installed on every machine? "
                    f"{str(error).strip().splitlines()[-1]}"
                ) from error
            raise P3Error(
                f"a worker died {RETRIES + 1} times at one shard, or {RESTARTS + 1} times in all (out of memory?); "
                f"what is finished stays, and the same command goes on from there: {_first_line(error)}"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise P3Error(
                f"Ray failed ({type(error).__name__}: {_first_line(error)}); what is finished stays, and the same "
                "command goes on from there"
            ) from error
        return found

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()
        else:
            for actor in self._actors:
                self._ray.kill(actor)


def everywhere(path: Any) -> Any:
    """A path as workers can use it, who have another working directory; what is no path here is left as it is."""
    return str(Path(path).absolute()) if isinstance(path, str | PathLike) and Path(path).exists() else path


def _workers_on(devices: float, each: float) -> int:
    """Workers that a machine has GPUs for; parts of a GPU are of one."""
    return int(devices // each) if each >= 1 else int(devices) * int(1 / each + 1e-9)


def cores_of_each(workers: int, nodes: Sequence[float]) -> float | None:
    """The most whole cores that every worker can have, none of them across two machines; None if not even one.

    Args:
        workers: How many.
        nodes: The cores of each machine.
    """
    for share in range(int(max(nodes)), 0, -1):
        if sum(int(cores // share) for cores in nodes) >= workers:
            return float(share)
    return None


def _start(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start a Ray of this machine's own."""
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    known = os.environ.get("RAY_ADDRESS", "")
    named = f"at {address!r}" if address is not None else f"at {known!r} (RAY_ADDRESS)"
    address = address or known or "local"
    if address == "local":
        options["include_dashboard"] = False
    else:
        _refuse_silence(address, named)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster {named}: {' '.join(str(error).split())} (one that asks for a token is joined with "
            "RAY_AUTH_MODE=token and that token here)"
        ) from error


def _refuse_silence(address: str, named: str) -> None:
    """Refuse an address where nothing answers: Ray itself would try for many minutes."""
    if address == "auto":
        try:
            from ray._private.services import canonicalize_bootstrap_address

            address = canonicalize_bootstrap_address("auto") or ""
        except (ImportError, ConnectionError, ValueError):
            return  # ray.init says it
    found = re.fullmatch(r"\[?([^/]+?)\]?:(\d+)", address)
    if found is None:
        return  # another kind of address: ray.init checks it
    try:
        socket.create_connection((found[1], int(found[2])), timeout=5).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"no Ray cluster {named}: nothing answers at {address} ({error}); start one there with 'ray start --head', "
            "or leave the address out for a Ray of this machine's own"
        ) from None


def _told(error: Exception, where: str = "") -> Exception:
    """An error as it goes from a worker to the driver: of its own kind where p3select raised it, or in one line."""
    if isinstance(error, P3Error):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return RuntimeError(f"{where}{type(error).__name__}: {_first_line(error)}{place}")


def _differing(one: Any, other: Any) -> str:
    return (
        f"the workers differ in {_difference(one, other)}: give all machines the same versions, devices and files, and "
        "leave those as they are while the command runs"
    )


def _listed(numbers: Sequence[float]) -> str:
    """Such as 8 + 8."""
    return " + ".join(f"{number:g}" for number in numbers)


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
        return ", ".join(f"{name} ({one.get(name)}, {other.get(name)})" for name in names)
    return f"{one}, {other}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
