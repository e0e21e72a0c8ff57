# Each target does the set-up it needs by itself; a second call finds it done.
PYTHON := .venv/bin/python

.PHONY: demo test lint venv clean

demo: venv
	.venv/bin/onedp demo

test: lint
	$(PYTHON) -m pytest

lint: venv
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

venv:
	@sh setup_environment.sh

clean:
	rm -rf .venv build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
