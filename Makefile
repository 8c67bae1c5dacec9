# `make check` is all that a change must pass; `.ci/run` does the same in a fresh virtual environment.
.PHONY: check lint format test slow

check: lint test

lint:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format:
	ruff format .
	ruff check --fix .

test:
	python -m pytest -n 2

# What takes long: learning, kills, many repetitions.
slow:
	python -m pytest -n 2 -m slow
