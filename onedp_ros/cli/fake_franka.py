"""Run a fake FR3 server on this machine, to try the real client without an arm.

``--install`` only sets up the server's environment. All other options are the server's: ``onedp fake-franka --help``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from onedp_ros.robot.fake_franka import become_server, environment

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--install"]:
        environment()
        return 0
    become_server(arguments)
