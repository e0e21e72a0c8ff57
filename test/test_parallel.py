"""The same results in the same order in this process, in several, and on a Dask cluster, whatever becomes of the workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import either, end, end_once, refuse, square, use
from distributed import Client, LocalCluster

from onedp_ros import parallel
from onedp_ros.parallel import WorkerError, Workers

EXECUTORS = ("here", "processes", "dask")


@pytest.fixture
def workers(cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Of the kind that the test names; two, but for those that are this process."""
    kinds = {"here": {"jobs": 1}, "processes": {"jobs": 2}, "dask": {"scheduler": cluster.scheduler_address}}
    with Workers(**kinds[request.param]) as workers:
        yield workers


@pytest.mark.parametrize("workers", EXECUTORS, indirect=True)
def test_results_and_their_order_are_the_same(workers: Workers) -> None:
    for numbers in (range(20), range(5, 8), ()):
        assert list(workers.run(square, [(n,) for n in numbers], numbers)) == [n**2 for n in numbers]


@pytest.mark.parametrize("workers", EXECUTORS[1:], indirect=True)
def test_two_calls_run_at_the_same_time(workers: Workers, tmp_path: Path) -> None:
    assert list(workers.run(either, [(1, tmp_path), (2, tmp_path)], "ab")) == [1, 2]


@pytest.mark.parametrize("workers", EXECUTORS[1:], indirect=True)
def test_a_killed_worker_costs_the_call_it_was_running(workers: Workers, tmp_path: Path) -> None:
    numbers = range(12)
    assert list(workers.run(end_once, [(n, 5, tmp_path) for n in numbers], numbers)) == [n**2 for n in numbers]
    calls = {n: (tmp_path / str(n)).stat().st_size for n in numbers}
    assert calls[5] == 2
    assert list(workers.run(square, [(4,)], "a")) == [16]  # they are still of use


def test_a_killed_process_costs_no_other_call(tmp_path: Path) -> None:
    with Workers(2) as workers:
        list(workers.run(end_once, [(n, 5, tmp_path) for n in range(12)], range(12)))
    assert [(tmp_path / str(n)).stat().st_size for n in range(12)] == [1] * 5 + [2] + [1] * 6


@pytest.mark.parametrize("workers", EXECUTORS[1:], indirect=True)
def test_a_call_that_ends_every_worker_is_named(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ALLOWED_LOSSES", 1)
    results = workers.run(end, [(n,) for n in range(6)], [f"episode {n}" for n in range(6)])
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(WorkerError, match=r"episode 3 ended .*, one after the other, perhaps for want of memory; .*with one job"):
        next(results)


@pytest.mark.parametrize("workers", EXECUTORS, indirect=True)
def test_an_error_of_the_function_comes_through(workers: Workers) -> None:
    with pytest.raises(ValueError, match=r"^7 cannot be used; take another$"):
        list(workers.run(refuse, [(7,), (8,)], "ab"))


@pytest.mark.parametrize("workers", EXECUTORS, indirect=True)
def test_a_worker_makes_what_it_keeps_once_and_leaves_it_for_another(workers: Workers, tmp_path: Path) -> None:
    pids = set()
    for size in (1, 2):
        results = list(workers.run(use, [(tmp_path, size)] * 8, range(8)))
        assert [value for value, _ in results] == [size] * 8
        pids |= {pid for _, pid in results}
        made = {p.name for p in tmp_path.glob(f"made_{size}_*")}
        assert made == {f"made_{size}_{pid}" for _, pid in results}, "once in each process that was used"
    assert len(pids) <= 2
    for pid in pids:
        both = (tmp_path / f"made_1_{pid}").exists() and (tmp_path / f"made_2_{pid}").exists()
        assert (tmp_path / f"left_1_{pid}").exists() == both


def test_what_this_process_keeps_is_left_in_the_end(tmp_path: Path) -> None:
    with Workers(1) as workers:
        list(workers.run(use, [(tmp_path, 1)] * 2, "ab"))
        assert not list(tmp_path.glob("left*"))
    assert len(list(tmp_path.glob("left*"))) == 1


@pytest.mark.parametrize("workers", EXECUTORS, indirect=True)
def test_a_folder_that_the_workers_see(workers: Workers, tmp_path: Path) -> None:
    workers.check_folder(tmp_path)
    workers.check_paths([tmp_path])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_a_worker_does_not_see_is_named(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Workers(scheduler=cluster.scheduler_address) as workers:
        with pytest.raises(WorkerError, match=f"does not see {tmp_path}/none as this machine does; mount the same file system"):
            workers.check_paths([tmp_path / "none"])
        monkeypatch.setattr(Path, "write_text", lambda *_: None)  # as when it is written to another machine's disk
        monkeypatch.setattr(Path, "unlink", lambda *_: None)
        with pytest.raises(WorkerError, match=f"does not see {tmp_path} as this machine does"):
            workers.check_folder(tmp_path)


def test_an_error_stops_what_is_running(tmp_path: Path) -> None:
    """The first call would last for ever."""
    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        results = workers.run(either, [(2, tmp_path / "none"), (1, tmp_path)], "ab")
        with pytest.raises(FileNotFoundError):
            next(results)
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tmp_path: Path, how: signal.Signals) -> None:
    program = f"""
from pathlib import Path
from calls import stay
from onedp_ros.parallel import Workers
if __name__ == "__main__":
    with Workers(2) as workers:
        list(workers.run(stay, [(Path({str(tmp_path)!r}),)] * 2, "ab"))
"""
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while len(workers := list(tmp_path.glob("stays_*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()  # Ctrl-C reaches all
    _, errors = process.communicate()
    while any(Path(f"/proc/{worker.name.removeprefix('stays_')}").exists() for worker in workers):
        time.sleep(0.01)
    assert errors.count("Traceback") == (how == signal.SIGINT), errors


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8786", "http://127.0.0.1:8786", "inproc://1/2/3", "tcp://127.0.0.1", "scheduler.json"]
)
def test_an_address_of_another_form_is_named(address: str) -> None:
    with pytest.raises(ValueError, match=f"the scheduler is '{address}', expected tcp://<host>:<port> or tls://"):
        Workers(scheduler=address)


def test_jobs_are_of_this_machine() -> None:
    with pytest.raises(ValueError, match=r"jobs is 2, but the workers of tcp://127.0.0.1:9 run the episodes"):
        Workers(2, "tcp://127.0.0.1:9")
    with pytest.raises(ValueError, match="jobs is 0, expected 1 or more"):
        Workers(0)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9 within 0 s; start one there: dask scheduler --host"),
        ("tls://127.0.0.1:9", "name the certificates in Dask's configuration"),
    ],
)
def test_no_scheduler(address: str, words: str) -> None:
    """In a process of its own: a client that could not connect keeps distributed from starting another event loop for a while."""
    program = f"from onedp_ros import parallel; parallel.CONNECT_TIMEOUT = 0.3; parallel.Workers(scheduler='{address}')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "WorkerError" in ended.stderr and words in ended.stderr


def test_without_distributed_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(WorkerError, match=r"pip install 'onedp_ros\[cluster\]'"):
        Workers(scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("package", parallel.SAME_EVERYWHERE)
@pytest.mark.parametrize("who", ["scheduler", "workers"])
def test_other_versions_are_named(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, package: str, who: str) -> None:
    real = Client.get_versions

    def differing(self: Client, **arguments: object) -> dict:
        found = real(self, **arguments)
        for part in [found["scheduler"]] if who == "scheduler" else found["workers"].values():
            part["packages"][package] = "0.0.7"
        return found

    monkeypatch.setattr(Client, "get_versions", differing)
    ours = "[0-9][^ ]*"
    with pytest.raises(
        WorkerError, match=rf"the {who.rstrip('s')} tcp://.* has {package} 0.0.7, this process {ours}; start .* from the same"
    ):
        Workers(scheduler=cluster.scheduler_address)


def test_a_scheduler_that_loses_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(1, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster:
        address = cluster.scheduler_address
        with (
            pytest.raises(WorkerError, match=f"{address} has no workers; start some on each machine: dask worker .* {address}"),
            Workers(scheduler=address) as workers,
        ):
            monkeypatch.setattr(parallel, "WORKERS_TIMEOUT", 0.5)
            cluster.scale(0)
            cluster.sync(cluster._correct_state)
            list(workers.run(square, [(1,)], "a"))


def test_workers_with_threads() -> None:
    with LocalCluster(
        1, threads_per_worker=2, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=":0"
    ) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(WorkerError, match=f"has 2 threads, expected 1; stop it and run dask worker .* {address}"):
            Workers(scheduler=address)


def test_a_scheduler_that_ends_is_named(tmp_path: Path) -> None:
    with LocalCluster(1, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster:
        workers = Workers(scheduler=cluster.scheduler_address)
        results = workers.run(either, [(1, tmp_path)], ["episode 1"])
        with (
            pytest.raises(WorkerError, match=r"the scheduler tcp://.* is gone, during episode 1; start it and its workers again"),
            workers,
        ):
            pending = workers._executor.submit(square, 2)
            cluster.close()
            next(results)
        assert pending.done()
