"""The command line: one file a command, listed without being imported."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from onedp_ros.cli import COMMANDS, main


def test_help_lists_every_command_with_a_line_and_imports_none_of_them() -> None:
    script = (
        "import sys; from onedp_ros.cli import main; main(['--help']); "
        "heavy = {'numpy', 'torch', 'rclpy', 'mujoco'} | {m for m in sys.modules if m.startswith('onedp_ros.cli.')}; "
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = {words[0]: words[1:] for words in map(str.split, done.stdout.splitlines()) if words}
    for name in COMMANDS.names():
        assert len(lines[name]) > 2, f"{name} has no line"


@pytest.mark.parametrize("name", COMMANDS.names())
def test_a_command_tells_its_options_without_what_does_the_work(name: str) -> None:
    if name == "fake-franka":
        pytest.skip("its options are the server's, which has an environment of its own")
    script = (
        f"import sys; from onedp_ros.cli import main\ntry:\n    main([{name!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(', '.join({'torch', 'rclpy', 'mujoco', 'cv2'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: onedp {name} ")


def test_an_unknown_command_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make-coffee"]) == 2
    told = capsys.readouterr().err
    assert "unknown command 'make-coffee', expected one of bench, collect, " in told
    assert "fake-franka" in told and "onedp_ros/cli/make_coffee.py" in told


def test_a_registered_command_runs_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    def greet(argv: Sequence[str]) -> int:
        """Say hello."""
        if not argv:
            raise ValueError("whom? give a name")
        print("hello", *argv)
        return 3

    COMMANDS.add("greet", greet)
    try:
        assert main(["--help"]) == 0 and "greet       Say hello." in capsys.readouterr().out
        assert main(["greet", "Ada"]) == 3 and capsys.readouterr().out == "hello Ada\n"
        assert main(["greet"]) == 1 and capsys.readouterr().err == "onedp greet: whom? give a name\n"
    finally:
        COMMANDS.remove("greet")
