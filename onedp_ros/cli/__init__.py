"""The command line: ``onedp <command> …``. One file a command: ``fake_franka.py`` is ``onedp fake-franka``.

Its first line is what ``onedp --help`` shows; its ``main`` takes the arguments and returns the exit status. It imports what does
the work once the arguments are read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from onedp_ros.registry import Registry, UnknownNameError

COMMANDS: Registry[Callable[[Sequence[str]], int]] = Registry("command", __name__, "main", besides=("arguments",), dashes=True)


def main(argv: Sequence[str] | None = None) -> int:
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: onedp <command> [options]; onedp <command> --help tells more\n")
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
    except (OSError, ValueError, RuntimeError) as error:  # ours name the thing and the remedy; a trace would bury that
        print(f"onedp {name}: {error}", file=sys.stderr)
        return 1
