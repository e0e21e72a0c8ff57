"""Files of settings: what is read, and what is refused at once, with the file, the line and the remedy."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onedp_ros.config import MAX_BYTES, ConfigError, check_name, check_topic, parse_json, parse_yaml, read_json, read_yaml


def nested(first: str, item: str) -> str:
    """Forty lines, each of which holds the one before nine times."""
    return f"a0: &a0 {first}\n" + "".join(f"a{i}: &a{i} {item % ','.join([f'*a{i - 1}'] * 9)}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested("[x]", "[%s]"), r"line 6: there are more than 100000 values"),
        (nested("{k: 1}", "{<<: [%s]}"), r"line 6: there are more than 100000 values"),
        ("a: &a [*a]", r"line 1: '\*a' names nothing that is complete"),
        ("a: 1\nb: " + "[" * 100_000, r"line 2: values lie more than 30 deep"),
        ("- " * 100_000, r"values lie more than 30 deep"),
        ("a: [" + "1," * 200_000 + "]", r"more than 100000 values"),
        ("a: 1\nb: 2\na: 3", r"line 3: 'a' is in line 1 already; keep one"),
        ("a: 1\n? [1, 2]\n: 3", r"line 2: a key is a list or a mapping"),
        ("a: " + "1:1" * 100_000, r"line 1: .* is too long for a number; put quotes"),
        ("a: 99999999999999999999", r"line 1 .*too large a number"),
        ("a: !!int foo", r"put quotes around"),
        ("b: 1\na: !!python/object/apply:os.system [touch here]", r"line 2: '!python/object/apply:os.system' is no plain value"),
        ("b: 1\na: [1", r"line 2 is not valid YAML: .*; correct it there"),
        ("a: 1\n---\nb: 2", r"line 2 is not valid YAML"),
        ("a: \x00", r"not valid YAML: unacceptable character"),
        ("", r"holds nothing, expected lines of the form 'name: value'"),
        ("- 3", r"holds a list, expected lines"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, message):
    file = tmp_path / "robot.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{file}.*{message}"):
        read_yaml(file)


def test_yaml_that_is_read():
    text = "defaults: &d {x: 1e-4, yes: [no, 2024-01-01, =]}\none: {<<: *d, 1: 0x10}\n"
    assert parse_yaml(text, "f") == {
        "defaults": {"x": 1e-4, "yes": [False, "2024-01-01", "="]},
        "one": {"x": 1e-4, "yes": [False, "2024-01-01", "="], "1": 16},
    }
    assert all(isinstance(key, str) for key in parse_yaml("1: a\ny: b\non: c\n2020-01-01: d\n", "f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":' * 100_000, r"30 deep"),
        ('{"a":' * 50 + "1" + "}" * 50, r"30 deep"),
        ('{"a": NaN}', r"holds NaN, expected finite numbers"),
        ('{"a": -Infinity}', r"holds -Infinity"),
        ('{"a": 1e999}', r"holds 1e999, which is too large"),
        ('{"a": ' + "1" * 5000 + "}", r"too large a number"),
        ('{"a": 1, "a": 2}', r"'a' is there twice"),
        ('{"a": "\\ud800"}', r"is no text"),
        ("[1]", r"holds \[1\], expected an object"),
        ('{\n"a": }', r"line 2 is not valid JSON"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ConfigError, match=rf"^config\.json.*{message}"):
        parse_json(text, "config.json")


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_what_is_no_file_of_text(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe is not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"zero is not a regular file"):
        read("/dev/zero")
    (tmp_path / "big").write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"big has more than \d+ bytes"):
        read(tmp_path / "big")
    (tmp_path / "latin").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match=r"latin is not text in UTF-8 \(byte 3\)"):
        read(tmp_path / "latin")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")


@pytest.mark.parametrize("name", ["wrist", "camera_0", "2024-01-01", "_", "a" * 64])
def test_names_that_may_be_paths(name):
    assert check_name("camera", name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "a.b", "a b", "-rf", "é", "a\n", "a\0", "a" * 65, "~", None, 3, ["a"]]
)
def test_names_that_may_not(name):
    with pytest.raises(ValueError, match=r"^camera name .* cannot become part of a path: use 1 to 64 letters"):
        check_name("camera", name)


def test_a_refused_name_comes_with_one_that_is_allowed():
    with pytest.raises(ValueError, match=r"'arm/wrist' .* such as 'arm_wrist'$"):
        check_name("camera", "arm/wrist")
    with pytest.raises(ValueError, match=r"such as 'task'$"):
        check_name("task", "../..")


def test_topics():
    assert check_topic("topic", "/fr3/wrist_camera/color/image_raw") and check_topic("topic", "joint_states")
    for name in ("", "/", "a//b", "a/", "1a", "a/1", "a b", "a-b", "a" * 201, "~/a", "é", None):
        with pytest.raises(ValueError, match=r"pose_topic .* is no name of a ROS topic"):
            check_topic("pose_topic", name)


def test_it_needs_the_standard_library_and_yaml_only():
    """Launch files read task files with the system's Python, which has nothing else."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import onedp_ros.config; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    modules = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    assert {name for name in modules if not name.startswith(("_", "cython"))} == {"onedp_ros", "yaml"}


@given(st.text(alphabet=st.sampled_from("&*a1[]{}:,- \n<|>!?'\"#%@.\t="), max_size=80))
def test_any_text_is_read_or_refused(text):
    for parse in (parse_yaml, parse_json):
        try:
            assert isinstance(parse(text, "f"), dict)
        except ConfigError as error:
            assert str(error).startswith("f")
