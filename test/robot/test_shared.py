"""Records between processes: always whole, always the newest, whatever dies."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from onedp_ros.robot.shared import Latest, SharedMemory

pytestmark = pytest.mark.concurrent

KIND = np.dtype([("count", "i8"), ("values", "f8", 60), ("name", "S7"), ("flag", "u1")])
WRITER = """
import sys, numpy as np
from onedp_ros.robot.shared import SharedMemory

kind = np.dtype([("count", "i8"), ("values", "f8", 60), ("name", "S7"), ("flag", "u1")])
latest = SharedMemory({"a": kind}, {}, int(sys.argv[1])).latest["a"]
count = 0
while True:
    count += 1
    latest.pack(count, *[float(count)] * 60, b"x%d" % (count % 1000), count % 200)
"""


def test_what_is_written_is_read() -> None:
    memory = SharedMemory({"a": KIND}, {"bins": (np.int64, 5)})
    record, read = np.zeros((), KIND), np.zeros((), KIND)
    assert not memory.latest["a"].read(read)
    for count in range(1, 10):
        record["count"], record["values"], record["name"], record["flag"] = count, np.arange(60) * count, b"n%d" % count, count
        memory.latest["a"].write(record)
        assert memory.latest["a"].read(read) and read == record and memory.latest["a"].count == count
    memory.arrays["bins"][2] += 3
    assert SharedMemory({"a": KIND}, {"bins": (np.int64, 5)}, memory.descriptor).arrays["bins"].tolist() == [0, 0, 3, 0, 0]


def test_a_reader_never_sees_half_a_record_nor_an_older_one_and_outlives_the_writer() -> None:
    memory = SharedMemory({"a": KIND}, {})
    latest = memory.latest["a"]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(memory.descriptor)], pass_fds=[memory.descriptor]) as writer:
        before, seen = 0, 0
        while seen < 20_000:
            count, *values, _name, flag = latest.unpack()
            if not count:
                assert writer.poll() is None, "the writer failed"
                continue
            assert set(values) == {float(count)} and flag == count % 200 and count >= before
            seen, before = seen + 1, count
        os.kill(writer.pid, signal.SIGKILL)
    count, *values, _name, _flag = latest.unpack()
    assert set(values) == {float(count)}


def test_sizes_keep_records_apart() -> None:
    assert Latest.size(KIND) % 64 == 0
    memory = SharedMemory({"a": KIND, "b": KIND}, {})
    record = np.ones((), KIND)
    memory.latest["b"].write(record)
    assert not memory.latest["a"].read(record)


def test_closing_gives_the_descriptor_back() -> None:
    memory = SharedMemory({"a": KIND}, {})
    memory.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.descriptor)
