"""The command line: ``onedp <command> …``. One file per command: ``fake_franka.py`` is ``onedp fake-franka``.

``onedp --help`` shows the first line of its docstring; its ``main`` takes the arguments and returns the exit status. Heavy imports
wait until the arguments are parsed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from onedp_ros.registry import Registry, UnknownNameError

COMMANDS: Registry[Callable[[Sequence[str]], int]] = Registry("command", __name__, "main", besides=("arguments",), dashes=True)


def main(argv: Sequence[str] | None = None) -> int:
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: onedp <command> [options]; onedp <command> --help lists the options\n")
        print("\n".join(f"  {command:11} {COMMANDS.summary(command)}" for command in COMMANDS.names()))
        return 0
    try:
        COMMANDS.check(name)
    except UnknownNameError as error:
        print(f"onedp: {error}", file=sys.stderr)
        return 2
    try:
        return COMMANDS.get(name)(arguments)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, RuntimeError) as error:  # ours name the thing and the remedy; a traceback would bury that
        print(f"onedp {name}: {error}", file=sys.stderr)
        return 1
