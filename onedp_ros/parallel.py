"""Episodes on the processes of this machine, or on the machines of a Dask cluster, through one :mod:`concurrent.futures` executor.

Results and their order are the same, whichever runs them. A worker that dies, killed for want of memory for example, costs the call
it was running, which another one makes again.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

ALLOWED_LOSSES = 3  # of workers by one call, as Dask's own default
CONNECT_TIMEOUT = 5.0  # s
WORKERS_TIMEOUT = 30.0  # s, in which workers come that were started with the scheduler, or again
START_WORKERS = "dask worker --nthreads 1 --nworkers <processes>"
SAME_EVERYWHERE = ("python", "distributed", "mujoco", "onedp_ros")  # in the version; contacts differ between those of MuJoCo

T = TypeVar("T")


class WorkerError(RuntimeError):
    """The workers cannot be used, or a call ends its workers; the message says which and what to do."""


class Workers:
    """What runs functions: use as a context manager. Left by an exception, it stops what is running.

    A scheduler and its workers are trusted: functions, arguments and results go between them and this process as pickles. This
    process only connects; it opens no port.

    Args:
        jobs: processes of this machine. 1: this process itself, so that what it registered is known. Default: one a core.
        scheduler: address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``, whose workers run the functions instead.

    Raises:
        ValueError: both ``jobs`` and ``scheduler``, no job, or an address of another form.
        WorkerError: the scheduler does not answer, has no usable workers, or runs other versions than this process.
    """

    def __init__(self, jobs: int | None = None, scheduler: str = "") -> None:
        if scheduler and jobs is not None:
            raise ValueError(f"jobs is {jobs}, but the workers of {scheduler} run the episodes; give one or the other")
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs is {jobs}, expected 1 or more")
        self._executor: Executor | None = None
        self._client: Any = None
        self._scheduler = scheduler
        self._killed: tuple[type[Exception], ...] = ()  # errors of a call that ended its workers
        if scheduler:
            self._client = _connect(scheduler)
            from distributed import KilledWorker

            self._killed = (KilledWorker,)
            self._executor = self._client.get_executor(pure=False)
        elif (count := jobs or os.cpu_count() or 1) > 1:
            self._executor = _Processes(count)

    def run(self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], names: Sequence[object]) -> Iterator[T]:
        """Yield ``function(*call)`` of each call, in order, each as soon as it and those before are there.

        Args:
            function: at the top level of a module, since it goes to other processes by its name.
            calls: arguments. A call that a dying worker had begun is made again, maybe with its files written in part or whole.
            names: of the calls, for messages.

        Raises:
            WorkerError: the workers of one call died again and again, or the scheduler is gone.
            Exception: the first that the function raised.
        """
        if self._executor is None:
            for call in calls:
                yield function(*call)
            return
        for future, name in zip([self._executor.submit(function, *call) for call in calls], names, strict=True):
            yield self._result(future, name)

    def _result(self, future: Future[T], name: object) -> T:
        while self._client is not None and not wait([future], WORKERS_TIMEOUT).done:
            _wait_for_workers(self._client, self._scheduler)
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                f"{name} ended {ALLOWED_LOSSES + 1} processes, one after the other, perhaps for want of memory; run it alone, with "
                f"one job, to see why"
            ) from error
        except CancelledError as error:
            raise WorkerError(f"the scheduler {self._scheduler} is gone, during {name}; start it and its workers again") from error
        except self._killed as error:
            raise WorkerError(
                f"{name} ended the cluster's workers, one after the other, perhaps for want of memory; see the log of the last, "
                f"{error.args[1].address}, or run it alone, here, with one job"
            ) from error

    def check_folder(self, folder: Path) -> None:
        """Make sure that workers on other machines see what this process writes to ``folder``, an absolute path.

        Raises:
            WorkerError: one does not.
        """
        if self._client is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        token, content = folder / f".{secrets.token_hex(8)}.token", secrets.token_hex(8)
        token.write_text(content)
        try:
            self._ask(partial(Path.read_text, token), content, folder)
        finally:
            token.unlink()

    def check_paths(self, paths: Sequence[Path]) -> None:
        """Make sure that workers on other machines see ``paths``, which are absolute. Errors as of :meth:`check_folder`."""
        for path in paths if self._client is not None else ():
            self._ask(path.exists, True, path)

    def _ask(self, look: Callable[[], object], expected: object, path: Path) -> None:
        for worker, seen in self._client.run(look, on_error="return").items():
            if seen != expected:
                raise WorkerError(
                    f"the worker {worker} does not see {path} as this machine does; mount the same file system at the same path on "
                    f"all machines, or leave --scheduler out"
                )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(self._executor, _Processes):
            self._executor.stop(at_once=kind is not None)
        elif self._client is not None:
            self._client.close()  # its calls are given up
        else:
            drop_kept()


def add_worker_options(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """Add --jobs, with its ``aliases``, and --scheduler, for the arguments of :class:`Workers`."""
    parser.add_argument("--jobs", *aliases, type=int, help="processes; 1: the command's own (default: one per core)")
    parser.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="run on a Dask cluster instead: tcp://<host>:<port> of its scheduler"
    )


class _Processes(Executor):
    """Threads, each with a process of its own: one that dies costs a single call, which is known."""

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")  # not forked: threads of OpenCV and PyTorch do not survive that
        self._reader, self._writer = self._context.Pipe(duplex=False)  # closed with this process, however that ends
        self._threads = ThreadPoolExecutor(count)
        self._of_thread = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._stopping = False

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return self._threads.submit(self._call, partial(function, *args, **kwargs))

    def _call(self, function: Callable[[], T]) -> T:
        losses = 0
        while True:
            pool = getattr(self._of_thread, "pool", None)
            if pool is None:
                pool = self._of_thread.pool = ProcessPoolExecutor(1, self._context, _end_with, (self._reader,))
                self._pools.append(pool)
            try:
                return pool.submit(function).result()
            except BrokenProcessPool:
                self._of_thread.pool = None
                losses += 1
                if losses > ALLOWED_LOSSES or self._stopping:
                    raise

    def stop(self, at_once: bool) -> None:
        """End the processes; ``at_once``: in the middle of their calls."""
        self._stopping = True
        if at_once:
            self._writer.close()
        self._threads.shutdown(cancel_futures=True)
        for pool in self._pools:
            pool.shutdown()
        self._writer.close()
        self._reader.close()


def _end_with(parent: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; this process ends when its parent has heard it

    def watch() -> None:
        try:
            parent.recv()
        except EOFError:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_kept: dict[Callable[..., Any], tuple[tuple[Any, ...], AbstractContextManager[Any], Any]] = {}


def kept(make: Callable[..., AbstractContextManager[T]], *args: Any) -> T:
    """What the context ``make(*args)`` gives, entered once in this process for all calls with equal arguments.

    With other arguments that context is left before the new one is entered. For what takes long to make, such as a policy that
    is loaded: a worker keeps it from one episode to the next.
    """
    if make in _kept and _kept[make][0] != args:
        _kept.pop(make)[1].__exit__(None, None, None)
    if make not in _kept:
        context = make(*args)
        _kept[make] = (args, context, context.__enter__())
    value: T = _kept[make][2]
    return value


def drop_kept() -> None:
    """Leave all contexts of :func:`kept`."""
    while _kept:
        _kept.popitem()[1][1].__exit__(None, None, None)


def _connect(address: str) -> Any:
    """A client of the scheduler, whose versions and workers are right. Errors as of :class:`Workers`."""
    if not re.fullmatch(r"(tcp|tls)://[^/\s]+:\d+", address):
        raise ValueError(f"the scheduler is '{address}', expected tcp://<host>:<port> or tls://<host>:<port>")
    try:
        from distributed import Client
    except ImportError as error:
        raise WorkerError("a scheduler needs the package distributed: pip install 'onedp_ros[cluster]'") from error
    try:
        client: Any = Client(address, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, asyncio.TimeoutError) as error:
        host, port = address.split("://")[1].rsplit(":", 1)
        raise WorkerError(
            f"no Dask scheduler answers at {address} within {CONNECT_TIMEOUT:.0f} s; start one there: dask scheduler --host {host} "
            f"--port {port}"
        ) from error
    except TypeError as error:  # tls without certificates
        raise WorkerError(f"{address}: {error}; name the certificates in Dask's configuration, distributed.comm.tls") from error
    try:
        _wait_for_workers(client, address)
        _check_versions(client.get_versions(packages=SAME_EVERYWHERE[1:]), address)
        for worker, facts in client.scheduler_info(n_workers=-1)["workers"].items():
            if facts["nthreads"] != 1:  # a simulation and a policy belong to one thread
                raise WorkerError(
                    f"the worker {worker} has {facts['nthreads']} threads, expected 1; stop it and run {START_WORKERS} {address}"
                )
    except BaseException:
        client.close()
        raise
    return client


def _wait_for_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT)
    except (OSError, asyncio.TimeoutError) as error:
        raise WorkerError(
            f"the scheduler {address} has no workers; start some on each machine: {START_WORKERS} {address}"
        ) from error


def _check_versions(found: dict[str, Any], address: str) -> None:
    ours = found["client"]["packages"]
    others = {f"the scheduler {address}": found["scheduler"], **{f"the worker {w}": v for w, v in found["workers"].items()}}
    for name, other in others.items():
        for package in SAME_EVERYWHERE:
            if (theirs := other["packages"].get(package)) != ours[package]:
                raise WorkerError(
                    f"{name} has {package} {theirs or 'not installed'}, this process {ours[package]}; start schedulers and workers "
                    f"from the same environment as this command"
                )
