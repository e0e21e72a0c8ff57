"""The set-up script, on machines it cannot serve: one clear sentence each, and nothing left behind."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("sh", "dirname", "cat", "cksum", "grep")

NO_PYTHON = 'echo "Python 3.9.2"; exit 1'
# Suitable, as far as its version goes; what it is asked to import fails.
BARE_PYTHON = 'case "$2" in *version_info*) exit 0 ;; *) exit 1 ;; esac'


@pytest.mark.parametrize(
    ("machine", "user", "python", "environment", "sentence"),
    [
        ("aarch64", 0, BARE_PYTHON, {}, "onedp_ros runs on x86-64 processors only"),
        ("x86_64", 0, NO_PYTHON, {}, "found no Python 3.10, 3.11 or 3.12 (python3 is Python 3.9.2); install one of them"),
        ("x86_64", 0, BARE_PYTHON, {"ROS_DISTRO": "jazzy"}, "with the rclpy of ROS 2 jazzy; install ros-jazzy-rclpy"),
        ("x86_64", 1000, BARE_PYTHON, {}, "run: sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"),
        ("x86_64", 0, BARE_PYTHON, {}, "headless rendering needs EGL libraries; run: sudo apt-get install libegl1"),
    ],
)
def test_unsuitable_machine_gets_one_clear_sentence(
    tmp_path: Path, machine: str, user: int, python: str, environment: dict[str, str], sentence: str
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for tool in TOOLS:
        (commands / tool).symlink_to(str(shutil.which(tool)))
    fakes = {"uname": f"echo {machine}", "id": f"echo {user}", "python3": python, "sudo": "exit 1", "apt-get": "exit 100"}
    for name, body in fakes.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("setup_environment.sh", "constraints.txt", "setup.py"):
        shutil.copy(ROOT / name, checkout)

    done = subprocess.run(
        ["sh", checkout / "setup_environment.sh"],
        env={"PATH": str(commands), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert sentence in done.stderr
    assert not (checkout / ".venv").exists()
