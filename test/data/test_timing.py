"""Rates, jitter, gaps and sync errors of streams whose stamps are known."""

import threading

import numpy as np
import pytest

from onedp_ros.contract import NANOSECONDS
from onedp_ros.data.timing import SAMPLE, StreamTiming, sync_errors_ms

START = 1_700_000_000 * NANOSECONDS
FRAME = 33_333_333  # ns


def timing(stamps: np.ndarray) -> StreamTiming:
    stream = StreamTiming()
    for stamp in stamps.tolist():
        stream.add(stamp)
    return stream


def test_an_even_stream_has_its_rate_and_no_gap() -> None:
    stream = timing(START + FRAME * np.arange(300))
    assert stream.count == 300 and stream.out_of_order == 0
    assert stream.hz == pytest.approx(30.0, abs=1e-3) and stream.period_ms == pytest.approx(33.333, abs=1e-3)
    assert stream.seconds == pytest.approx(299 / 30, abs=1e-4)
    assert stream.jitter_ms_p95 == 0.0 and stream.gaps() == [] and stream.longest_gap_frames == 0 and stream.missing_frames == 0


def test_missing_frames_are_found_where_they_are_missing() -> None:
    k = np.arange(100)
    stream = timing(START + FRAME * k[~np.isin(k, [20, 50, 51, 52])])
    assert [(stamp, missing) for stamp, _, missing in stream.gaps()] == [(START + 19 * FRAME, 1), (START + 49 * FRAME, 3)]
    assert [s for _, s, _ in stream.gaps()] == pytest.approx([2 / 30, 4 / 30], abs=1e-4)
    assert stream.longest_gap_frames == 3 and stream.missing_frames == 4
    assert stream.period_ms == pytest.approx(33.333, abs=1e-3), "gaps must not move the period"
    assert stream.hz == pytest.approx(95 / 99 * 30, abs=1e-3), "but they lower the rate"


@pytest.mark.parametrize(("periods", "missing"), [(1.45, 0), (1.55, 1), (2.4, 1), (2.6, 2)])
def test_a_gap_is_longer_than_one_and_a_half_periods(periods: float, missing: int) -> None:
    before = START + FRAME * np.arange(50)
    stream = timing(np.concatenate([before, before + FRAME * 49 + round(periods * FRAME)]))
    assert stream.missing_frames == missing and len(stream.gaps()) == (missing > 0)


def test_jitter_is_the_distance_from_the_period() -> None:
    intervals = np.full(1000, 10_000_000)
    intervals[::10] += 3_000_000  # a tenth is 3 ms late, and the next as much early
    intervals[1::10] -= 3_000_000
    stream = timing(START + np.cumsum(intervals))
    assert stream.period_ms == pytest.approx(10.0) and stream.jitter_ms_p95 == pytest.approx(3.0)
    intervals[:] = 10_000_000
    intervals[::50] += 3_000_000  # two of a hundred are beyond the 95th percentile
    assert timing(START + np.cumsum(intervals)).jitter_ms_p95 == pytest.approx(0.0)


def test_stamps_that_do_not_rise_are_counted_and_left_out() -> None:
    stamps = START + FRAME * np.arange(10)
    stream = timing(np.insert(stamps, 5, [stamps[4], stamps[2]]))  # one twice, one late
    assert stream.count == 12 and stream.out_of_order == 2
    np.testing.assert_array_equal(stream.stamps, stamps)
    assert stream.gaps() == [] and stream.hz == pytest.approx(30.0, abs=1e-3)


def test_less_than_two_stamps_have_no_rate() -> None:
    for stream in (timing(np.array([], dtype=np.int64)), timing(np.array([START]))):
        assert (stream.hz, stream.period_ms, stream.jitter_ms_p95, stream.seconds) == (0.0, 0.0, 0.0, 0.0)
        assert stream.gaps() == [] and stream.longest_gap_frames == 0


def test_a_run_longer_than_the_sample_keeps_its_figures() -> None:
    rng = np.random.default_rng(0)
    intervals = rng.normal(5e6, 2e5, 5 * SAMPLE).astype(np.int64)
    intervals[-7] = 52_000_000  # and no gap is passed over
    stream = timing(START + np.cumsum(intervals))
    assert stream.period_ms == pytest.approx(5.0, abs=0.02)
    assert stream.jitter_ms_p95 == pytest.approx(1.96 * 0.2, abs=0.02)
    assert len(stream.gaps()) == 1 and stream.longest_gap_frames in (9, 10)


def test_one_thread_adds_while_another_reads() -> None:
    stream = StreamTiming()
    stop = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        try:
            while not stop.is_set():
                assert stream.jitter_ms_p95 == 0.0 and stream.gaps() == []
        except Exception as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for k in range(50_000):
            stream.add(START + k * FRAME)
    finally:
        stop.set()
        reader.join()
    assert failures == [] and stream.count == len(stream.stamps) == 50_000


def test_sync_error_is_the_time_to_the_nearest_frame_on_either_side() -> None:
    wrist = START + FRAME * np.arange(100)
    assert sync_errors_ms(wrist, wrist + 5_000_000).max() == pytest.approx(5.0)
    errors = sync_errors_ms(wrist[1:], wrist[:-1] + FRAME * 3 // 4)  # a quarter of a period before the next
    assert errors == pytest.approx(np.full(99, 8.333), abs=1e-3)
    staggered = sync_errors_ms(wrist, wrist + FRAME // 2)
    assert staggered.shape == (100,) and staggered.max() == pytest.approx(16.667, abs=1e-3)


def test_sync_error_shows_where_the_other_camera_was_silent() -> None:
    wrist = START + FRAME * np.arange(100)
    errors = sync_errors_ms(wrist, np.delete(wrist, slice(40, 50)))
    assert np.flatnonzero(errors).tolist() == list(range(40, 50)) and errors.max() == pytest.approx(5 * 33.333, abs=1e-2)
    with pytest.raises(ValueError, match="no frame"):
        sync_errors_ms(wrist, [])
