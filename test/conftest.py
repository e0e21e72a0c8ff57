"""Fuzzing is the same in every run and has no deadlines: speed is measured by ``onedp bench``, not here."""

from hypothesis import settings

settings.register_profile("onedp", deadline=None, derandomize=True)
settings.load_profile("onedp")
