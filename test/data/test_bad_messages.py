"""Recordings from labs: one bad message is one bad message, what is doubtful is said, and what can be used is used."""

import dataclasses
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zarr
from recordings import ARM, START, Record
from rosbags.rosbag2 import StoragePlugin, Writer

from onedp_ros.cli.convert import main
from onedp_ros.contract import NANOSECONDS, Contract, task_contract
from onedp_ros.data import quality
from onedp_ros.data.bags.reader import TYPES, BagError, read_messages
from onedp_ros.data.convert import convert
from onedp_ros.data.episodes import Dropped, Episode, read_episodes

WRIST, JOINTS, POSE = "wrist_camera/color/image_raw", "joint_states", "current_pose"
Change = Callable[[str, int, Any], Any]
"""Topic, number within it, message -> the message to write, None for none."""


MILK = task_contract("pnp_milk")


def kind(name: str) -> Any:
    return TYPES.types[name]


HEADER, POSED, QUATERNION = map(kind, ("std_msgs/msg/Header", "geometry_msgs/msg/Pose", "geometry_msgs/msg/Quaternion"))
STILL = kind("geometry_msgs/msg/Twist")(*2 * [kind("geometry_msgs/msg/Vector3")(0, 0, 0)])
LAYOUT = kind("std_msgs/msg/MultiArrayLayout")([], 0)


@pytest.fixture
def changed(record: Record, tmp_path: Path) -> Callable[..., Path]:
    """A recording of 2 s whose messages were changed; ``lags`` (ns, by topic) is how much later they were logged."""

    def write(change: Change, lags: dict[str, int] | None = None, name: str = "changed") -> Path:
        source = tmp_path / "good"
        if not source.exists():
            record("good")
        entries = []
        numbers: dict[str, int] = {}
        for topic, _, logged, content in read_messages(source):
            number = numbers[topic] = numbers.get(topic, -1) + 1
            if (message := change(topic, number, content)) is not None:
                entries.append((logged + (lags or {}).get(topic, 0), topic, message))
        with Writer(tmp_path / name, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections: dict[tuple[str, str], Any] = {}
            for logged, topic, message in sorted(entries, key=lambda entry: entry[0]):
                key = topic, message.__msgtype__
                if key not in connections:
                    suffix = "/compressed" * key[1].endswith("CompressedImage")
                    connections[key] = writer.add_connection(f"/{topic}{suffix}", key[1], typestore=TYPES)
                writer.write(connections[key], logged, TYPES.serialize_cdr(message, key[1]))
        return tmp_path / name

    return write


def steps(found: tuple[list[Episode], Dropped]) -> int:
    return sum(len(episode.stamps) for episode in found[0])


def picture(message: Any) -> np.ndarray:
    return np.asarray(message.data.reshape(message.height, message.width, 3)[..., ::-1])


def encoded(message: Any, image: np.ndarray, extension: str = ".jpg", cut: float = 1.0) -> Any:
    data = cv2.imencode(extension, image)[1].reshape(-1)
    return kind("sensor_msgs/msg/CompressedImage")(message.header, extension[1:], data[: int(cut * len(data))])


def with_position(message: Any, **values: float) -> Any:
    position = dataclasses.replace(message.pose.position, **values)
    return dataclasses.replace(message, pose=dataclasses.replace(message.pose, position=position))


BAD: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "NaN in a joint state": (JOINTS, lambda m: dataclasses.replace(m, position=np.full(9, np.nan)), "not finite"),
    "joint state without fingers": (JOINTS, lambda m: dataclasses.replace(m, name=ARM), "joint names"),
    "NaN in a pose": (POSE, lambda m: with_position(m, x=np.nan), "NaN or infinity"),
    "pose in another frame": (
        POSE,
        lambda m: dataclasses.replace(m, header=HEADER(m.header.stamp, "cam")),
        "frame",
    ),
    "pose of no rotation": (
        POSE,
        lambda m: dataclasses.replace(m, pose=POSED(m.pose.position, QUATERNION(0, 0, 0, 0))),
        "unit quaternion",
    ),
    "NaN in a target": ("target_pose", lambda m: with_position(m, z=np.nan), "expected numbers"),
    "infinite opening": ("gripper_target", lambda m: dataclasses.replace(m, position=np.array([np.inf])), "expected one opening"),
    "no opening": ("gripper_target", lambda m: dataclasses.replace(m, position=np.zeros(0)), "expected one opening"),
    "image of another size": (WRIST, lambda m: dataclasses.replace(m, height=60, width=60, step=180), "expected 160x120"),
    "image with too few bytes": (WRIST, lambda m: dataclasses.replace(m, data=m.data[:100]), "100 bytes"),
    "image of depth": (WRIST, lambda m: dataclasses.replace(m, encoding="16UC1", width=80), "16UC1"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_bad_message_costs_itself_and_is_counted_by_topic(changed: Callable[..., Path], contract: Contract, what: str) -> None:
    topic, spoil, named = BAD[what]
    bag = changed(lambda t, number, message: spoil(message) if t == topic and number in (0, 7) else message)
    good = steps(read_episodes(bag.with_name("good"), contract))
    found = read_episodes(bag, contract)
    assert steps(found) >= good - 2
    ((reason, count),) = [(reason, n) for reason, n in found[1].items() if reason.startswith(f"{topic} message refused")]
    assert count == 2 and named in reason
    assert (
        np.isfinite(np.concatenate([e.state for e in found[0]])).all()
        and np.isfinite(np.concatenate([e.action for e in found[0]])).all()
    )


@pytest.mark.parametrize(("cut", "named"), [(0.0, "0 bytes cannot be decoded"), (0.5, "lacks its end"), (0.97, "lacks its end")])
def test_an_empty_or_halved_jpeg_costs_one_frame(changed: Callable[..., Path], contract: Contract, cut: float, named: str) -> None:
    bag = changed(lambda t, number, m: encoded(m, picture(m), cut=cut if number == 5 else 1.0) if t == WRIST else m)
    found = read_episodes(bag, contract)
    assert steps(found) >= 39
    assert [n for reason, n in found[1].items() if named in reason and f"{WRIST}/compressed message refused" in reason] == [1]


@pytest.mark.parametrize("extension", [".png", ".jpg"])
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_are_taken_compressed_as_they_are_raw(
    changed: Callable[..., Path], contract: Contract, extension: str, channels: int
) -> None:
    if extension == ".jpg" and channels == 4:
        pytest.skip("JPEG has no alpha")
    code = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2BGRA
    bag = changed(lambda t, _, m: encoded(m, cv2.cvtColor(picture(m), code), extension) if t == WRIST else m)
    (episode,), dropped = read_episodes(bag, contract)
    (good,), _ = read_episodes(bag.with_name("good"), contract)
    assert not any("refused" in reason for reason in dropped)
    for found, true in zip(episode.images["wrist"], good.images["wrist"], strict=True):
        expected = true if channels == 4 else np.repeat(cv2.cvtColor(true, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        assert np.abs(found.astype(int) - expected).mean() < (20 if extension == ".jpg" else 1)


def test_depth_is_refused_by_its_name(changed: Callable[..., Path], contract: Contract) -> None:
    bag = changed(lambda t, _, m: encoded(m, np.zeros((120, 160), np.uint16), ".png") if t == WRIST else m)
    with pytest.raises(BagError, match=r"uint16 with 1 channels, as depth is; expected 8 bits: give the topic of the colour image"):
        read_episodes(bag, contract)


OTHER: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "Pose": ("target_pose", lambda m: m.pose),
    "TwistStamped": (
        "target_pose",
        lambda m: kind("geometry_msgs/msg/TwistStamped")(m.header, STILL),
    ),
    "Float64": ("gripper_target", lambda m: kind("std_msgs/msg/Float64")(0.08)),
    "Float64MultiArray": (
        JOINTS,
        lambda m: kind("std_msgs/msg/Float64MultiArray")(LAYOUT, np.zeros(9)),
    ),
    "PointStamped": (POSE, lambda m: kind("geometry_msgs/msg/PointStamped")(m.header, m.pose.position)),
}


def test_bags_with_a_wrong_type_are_named_and_the_others_written(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (topic, other) in OTHER.items():
        changed(lambda t, _, m, topic=topic, other=other: other(m) if t == topic else m, name=name)
    out = tmp_path / "out.zarr"
    arguments = [*(str(tmp_path / name) for name in (*OTHER, "good")), "--out", str(out), "--workers", "1", "--task", "pnp_milk"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    for name, (topic, _) in OTHER.items():
        assert re.search(rf"skipped {tmp_path / name}: .*{topic}: its type is \w+/msg/{name}, expected \w+/msg/\w+; publish", said)
    assert [entry["bag"] for entry in zarr.open_group(str(out), mode="r").attrs["episodes"]] == ["good"]


def test_a_few_messages_of_a_wrong_type_cost_nothing_else(changed: Callable[..., Path], contract: Contract) -> None:
    """Two publishers on one topic."""
    bag = changed(lambda t, number, m: m.pose if t == "target_pose" and number == 3 else m)
    found = read_episodes(bag, contract)
    assert steps(found) == 40
    assert any(
        reason.startswith("target_pose message refused (the first: its type is geometry_msgs/msg/Pose") for reason in found[1]
    )


@pytest.mark.parametrize("topic", [JOINTS, POSE, "target_pose", "cameras"])
def test_messages_without_stamps_get_the_time_of_recording(changed: Callable[..., Path], contract: Contract, topic: str) -> None:
    header = kind("std_msgs/msg/Header")(kind("builtin_interfaces/msg/Time")(0, 0), contract.base_frame)

    def unstamp(t: str, _: int, message: Any) -> Any:
        return dataclasses.replace(message, header=header) if t == topic or (topic == "cameras" and "image" in t) else message

    found = read_episodes(changed(unstamp), contract)
    assert steps(found) == 40
    assert any("have no stamp; the time of recording is used" in warning for warning in found[1].warnings)


def test_notes_of_another_recorder_cost_nothing(record: Record, tmp_path: Path, contract: Contract) -> None:
    bag = record("foreign", 0.5)
    text = (bag / "metadata.yaml").read_text()
    place = text.index("custom_data:")
    (bag / "metadata.yaml").write_text(
        text[:place] + "custom_data: {contract: v2 2025, versions: '1.2', problems: none, success: '0'}\n"
    )
    damaged = record("other", 0.5)
    text = (damaged / "metadata.yaml").read_text()
    (damaged / "metadata.yaml").write_text(re.sub(r"control_hz\S+ [\d.]+", 'hz": 3', text))
    report = convert([bag, damaged, record("good", 0.5)], tmp_path / "out.zarr", contract, workers=1, progress=False)
    assert report.episodes == 2
    assert "its contract is not valid in this version" in report.skipped[str(damaged)]


def test_a_gripper_commanded_once_is_held_and_before_it_the_measured_opening(
    changed: Callable[..., Path], contract: Contract
) -> None:
    def once(topic: str, number: int, message: Any) -> Any:
        if topic != "gripper_target":
            return message
        return message if number == 20 else None

    (episode,), _ = read_episodes(changed(once), contract)
    assert len(episode.stamps) == 40
    begin = START + (3 * 20 + 1) * 16_666_667
    np.testing.assert_allclose(episode.action[:, 9], np.where(episode.stamps < begin, 0.08, 0.0), atol=1e-6)  # fingers at 0.04
    with pytest.raises(BagError, match=r"lacks the topics \['gripper_target'\], it has .*use the bag's topic names for the action"):
        read_episodes(changed(lambda t, _, m: None if t == "gripper_target" else m, name="never"), contract)


def test_state_that_comes_late_is_said_loudly_and_so_is_a_cameras_clock(
    changed: Callable[..., Path], contract: Contract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = changed(lambda t, _, m: m, lags={JOINTS: 400_000_000, POSE: 400_000_000}, name="late")
    clock = changed(lambda t, _, m: m, lags={WRIST: 200_000_000}, name="clock")
    assert main([str(late), "--out", str(tmp_path / "a"), "--task", "pnp_milk", "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"WARNING .*late: only \d+ steps remain of about 41; dropped: \d+ no state at the stamp", said)
    assert "joint_states was recorded 0.400 s after its stamps" in said
    found = read_episodes(clock, contract)
    assert any(f"{WRIST} was recorded 0.200 s after its stamps (median; the smallest of all 0.000)" in w for w in found[1].warnings)
    assert read_episodes(tmp_path / "good", contract)[1].warnings == []


def test_a_clock_that_is_set_back_ends_a_piece_and_loses_little(changed: Callable[..., Path], contract: Contract) -> None:
    def set_back(_: str, __: int, message: Any) -> Any:
        stamp = message.header.stamp.sec * NANOSECONDS + message.header.stamp.nanosec
        if stamp < START + NANOSECONDS:
            return message
        time = kind("builtin_interfaces/msg/Time")(*divmod(stamp - 100 * NANOSECONDS, NANOSECONDS))
        return dataclasses.replace(message, header=dataclasses.replace(message.header, stamp=time))

    episodes, _ = read_episodes(changed(set_back), contract)
    assert len(episodes) == 2 and sum(len(e.stamps) for e in episodes) >= 36
    assert episodes[1].stamps[0] < episodes[0].stamps[0]


def test_topics_of_other_names_are_named_with_what_is_there(changed: Callable[..., Path], contract: Contract) -> None:
    bag = changed(lambda t, _, m: m)
    moved = [dataclasses.replace(f, topic="arm/state/current_pose") if f.topic == "current_pose" else f for f in contract.state]
    spaced = dataclasses.replace(contract, state=tuple(moved))
    with pytest.raises(BagError, match=r"lacks the topics \['arm/state/current_pose'\], it has \['current_pose'\]; use the"):
        read_episodes(bag, spaced)


def motion(n: int = 40, angle: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    state = np.tile(np.float32([0.4, 0, 0.3, np.cos(angle / 2), np.sin(angle / 2), 0, 0, 0.04, 0.04]), (n, 1))
    action = np.tile(np.float32([0.4, 0, 0.3, 1, 0, 0, 0, -1, 0, 0.08]), (n, 1))
    return state, action


def test_plausible_values_raise_no_doubt_and_others_name_value_and_unit() -> None:
    assert quality.doubts(MILK, *motion(), [40]) == []
    for factor in (1000, 3187.5, 1250, 12.5):
        state, action = motion()
        state[5:, 7:] *= factor
        action[5:, 9] *= factor
        found = quality.doubts(MILK, state, action, [40])
        assert len(found) == 2
        for doubt, which, most in zip(found, ("the measured finger", "the target opening"), (0.04, 0.08), strict=True):
            assert f"{which} spans {most:g} to {most * factor:.4g}, expected 0 to {most:g}; record it in the unit" in doubt
    state, action = motion()
    state[:, :3] *= 1000
    assert "the measured position lies up to 400 m" in quality.doubts(MILK, state, action, [40])[0]
    action[:, :3] = 0.01  # deltas
    state[:, :3] /= 1000
    assert "targets lie 0.49 m from the end effector (median)" in quality.doubts(MILK, state, action, [40])[0]


def test_the_seam_of_the_quaternion_is_said_before_and_at_it() -> None:
    assert quality.doubts(MILK, *motion(angle=np.radians(160)), [40]) == []
    both = (np.concatenate(pair) for pair in zip(motion(20), motion(20, np.radians(170)), strict=True))
    assert "in 1 of 2 episodes" in quality.doubts(MILK, *both, [20, 40])[0]
    state, action = motion(angle=np.radians(180))
    state[::2, 3:7] *= -1  # as encode_state does when noise decides
    (doubt,) = quality.doubts(MILK, state, action, [40])
    assert "in 40 steps; it changes its sign there 39 times" in doubt


def test_an_empty_episode_of_a_store_is_left_out_by_name(tmp_path: Path, contract: Contract) -> None:
    fields = {"data/state": motion(30)[0], "data/action": motion(30)[1], "meta/episode_ends": np.array([0, 10, 10, 30])}
    rng = np.random.default_rng(0)
    fields |= {f"data/{n}": rng.integers(0, 255, (30, c.height, c.width, 3), np.uint8) for n, c in contract.cameras.items()}
    version: dict[str, Any] = {"zarr_format": 2} if zarr.__version__ >= "3" else {}
    store = str(tmp_path / "a.zarr")
    zarr.open_group(store, mode="w", **version)
    for name, values in fields.items():
        zarr.create(shape=values.shape, dtype=values.dtype, chunks=values.shape, store=store, path=name, **version)[:] = values
    report = convert([store], tmp_path / "out.zarr", contract, workers=1, progress=False)
    assert (report.episodes, report.steps) == (2, 30)
    assert [name for name in report.skipped if "has no step" in report.skipped[name]] == [f"{store}/episode_{i}" for i in (0, 2)]


def test_memory_does_not_grow_with_an_episodes_length(record: Record, contract: Contract, tmp_path: Path) -> None:
    """Images wait on the disk, not in memory."""
    peaks = []
    for seconds in (2.0, 8.0):
        bag = record(f"long_{seconds:.0f}", seconds)
        tracemalloc.start()
        episodes, _ = read_episodes(bag, contract, tmp_path / "frames")
        held: Iterator[Any] = iter(episodes[0].images["wrist"])
        assert sum(1 for _ in held) == seconds * 20
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**21
