# `make check` is all that a change must pass; `.ci/run` does the same in a fresh virtual environment.
.PHONY: check lint format test

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
