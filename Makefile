# Each goal does all of its own set-up: a bare machine with Python >= 3.10 and a package index is enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run test gpu quality style clean
.DEFAULT_GOAL := help

help: ## list the goals
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

run: .venv/installed ## train onepoch, installing what it needs first
	$(BIN)/accelerate launch --quiet launch.py recipe=onepoch

test: .venv/installed-dev ## the tests (slow ones: .venv/bin/pytest -m slow)
	$(BIN)/python -m pytest -n 2 --dist worksteal

gpu: .venv/installed-dev ## where there is a GPU: its tests, profiles and benchmarks (KEYS="part=tests minutes=9")
	@$(BIN)/python -m benchmarks.gpu $(KEYS)

quality: .venv/installed-dev ## ruff check, ruff format --check, mypy on the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: .venv/installed-dev ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.10. Install one, or type make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot make a virtual environment. Install its venv module (Debian: apt install python3-venv)" >&2; exit 2; }

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
