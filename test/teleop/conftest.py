"""A phone's server on a free port; Chromium, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CODE

from onedp_ros.teleop.devices.base import Setup
from onedp_ros.teleop.devices.phone.server import Phone

CAMERAS = ("front", "wrist")


@pytest.fixture(scope="session")
def certificate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificate")


@pytest.fixture
def serve(certificate_folder: Path) -> Iterator[Callable[..., Phone]]:
    """Starts a server; all are closed after the test."""
    phones: list[Phone] = []

    def start(**options: object) -> Phone:
        given: dict[str, Any] = {"code": CODE, "certificate_folder": certificate_folder, **options}
        setup = {name: given.pop(name) for name in ("host", "port", "tell") if name in given}
        phones.append(Phone(Setup(cameras=CAMERAS, **{"port": 0, **setup}), **given))
        return phones[-1]

    yield start
    for phone in phones:
        phone.close()


@pytest.fixture
def phone(serve: Callable[..., Phone]) -> Phone:
    return serve()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    pytest.importorskip("playwright", reason="playwright, which drives the browser, is not installed")
    from browser import CHROMIUM, launch
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()
