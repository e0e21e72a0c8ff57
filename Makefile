# Each target does the set-up it needs by itself; a second call finds it done.
PYTHON := .venv/bin/python

.PHONY: demo test lint fake-franka browser venv clean

demo: venv
	.venv/bin/onedp demo

# First what may share the machine, a process a core; then, one at a time, what runs against the clock: in a process of its own, so
# that a crash of the middleware costs one test.
test: lint fake-franka browser
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not real_time" -n auto --dist loadfile; first=$$?; \
	$(PYTHON) -m pytest -m real_time -n 1 && exit $$first

lint: venv
	@find onedp_ros -name '*.py' -exec awk 'FNR == 401 { print FILENAME ": over 400 lines; split it"; long = 1 } END { exit long }' {} +
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-cache --no-logo

fake-franka: venv
	@.venv/bin/onedp fake-franka --install

browser:
	@sh setup_environment.sh browser

venv:
	@sh setup_environment.sh

clean:
	rm -rf .venv build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
