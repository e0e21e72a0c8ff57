#!/bin/sh
# Makes .venv: Python packages as pinned in constraints.txt and, unless a ROS 2 distribution is sourced, ROS 2 Jazzy from
# wheels; installs the EGL libraries that headless rendering needs. Called by make; does nothing when all is in place.
# "setup_environment.sh browser" gets a Chromium for the tests of the phone's page, which are skipped without one.
set -eu
cd "$(dirname "$0")"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

suitable() { # Is "$1" a Python 3.10 to 3.12, and does it have the sourced distribution's rclpy, if there is one?
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || return 1
    [ -z "${ROS_DISTRO:-}" ] || "$1" -c 'import rclpy' 2>/dev/null
}

find_python() {
    for candidate in python3 python3.12 python3.11 python3.10; do
        if suitable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if [ -n "${ROS_DISTRO:-}" ]; then
        fail "found no Python 3.10 to 3.12 with the rclpy of ROS 2 $ROS_DISTRO; install ros-$ROS_DISTRO-rclpy, or open a shell \
in which ROS is not sourced"
    fi
    fail "found no Python 3.10, 3.11 or 3.12 (python3 is $(python3 -V 2>&1 || true)); install one of them, for example python3.12"
}

rendering_works() {
    "$1" - <<'PYTHON' 2>/dev/null
import ctypes, glob
for library in ("libEGL.so.1", "libOpenGL.so.0"):
    ctypes.CDLL(library)
try:
    ctypes.CDLL("libEGL_nvidia.so.0")
except OSError:
    ctypes.CDLL("libEGL_mesa.so.0")
    assert glob.glob("/usr/lib/*/dri/*_dri.so") or glob.glob("/usr/lib*/dri/*_dri.so")
PYTHON
}

apt_install() { # $@: packages; fails where that needs a password
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root="sudo -n"
    fi
    { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$@"; } >&2
}

install_rendering() {
    packages="libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
    if ! command -v apt-get >/dev/null; then
        fail "the EGL and OpenGL libraries of Mesa are missing; install what this system calls $packages"
    fi
    say "installing the EGL libraries for headless rendering with apt-get: $packages"
    # shellcheck disable=SC2086 # a list of words
    apt_install $packages || fail "headless rendering needs EGL libraries; run: sudo apt-get install $packages"
}

if [ "${1:-}" = browser ]; then
    for browser in chromium chromium-browser google-chrome; do
        if command -v "$browser" >/dev/null; then exit 0; fi
    done
    say "installing chromium with apt-get, for the tests of the phone's page"
    apt_install chromium || say "no chromium here, so the tests of the phone's page will be skipped; install one to run them"
    exit 0
fi

machine="$(uname -m)"
case "$machine" in
    x86_64 | amd64) ;;
    *) fail "onedp_ros runs on x86-64 processors only, since ROS 2 and PyTorch are installed as wheels for them; this one is $machine" ;;
esac

# What the environment was made from; when this is what it was, nothing needs doing.
made_from() { # $1: Python
    "$1" -V
    printf 'ROS %s\n' "${ROS_DISTRO:-from wheels}"
    cksum constraints.txt setup.py setup_environment.sh
    pwd
}
if [ -f .venv/.made_from ] && [ -x .venv/bin/onedp ] && [ "$(made_from .venv/bin/python)" = "$(cat .venv/.made_from)" ]; then
    exit 0
fi

python="$(find_python)"
rendering_works "$python" || install_rendering
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module; run: sudo apt-get install python3-venv"

say "making .venv with $("$python" -V 2>&1); the first time this downloads about 1 GB and takes some minutes"
extras="ros,test"
system_packages="false"
if [ -n "${ROS_DISTRO:-}" ]; then
    say "using ROS 2 $ROS_DISTRO"
    extras="test"
    system_packages="true"
fi
if [ "$(.venv/bin/python -V 2>/dev/null)" != "$("$python" -V)" ] ||
    ! grep -qi "^include-system-site-packages = $system_packages" .venv/pyvenv.cfg; then
    if [ "$system_packages" = true ]; then
        "$python" -m venv --clear --system-site-packages .venv
    else
        "$python" -m venv --clear .venv
    fi
fi

pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"; }
pip_install setuptools wheel
# The CPU build of PyTorch, a tenth of the size, where there is no NVIDIA GPU.
torch_index="https://download.pytorch.org/whl/cpu"
if command -v nvidia-smi >/dev/null; then
    say "installing PyTorch with CUDA"
    pip_install torch
else
    say "installing PyTorch for the CPU"
    pip_install --retries 1 --extra-index-url "$torch_index" torch
fi
say "installing the other packages"
pip_install --no-build-isolation --editable ".[$extras]"
pip_install --no-deps franky-sim # last: pip complains of its missing dependencies
made_from .venv/bin/python >.venv/.made_from
say "ready"
