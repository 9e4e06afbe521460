# `make demo` and `make test` set up .venv first; PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-attack test lint docs bench

.venv/ready: pyproject.toml constraints.txt
	@echo "setting up .venv (once; it takes a minute or two)"
	$(PYTHON) -m venv .venv
	@# Gradio asks for a Pillow below the one that is pinned, and runs with that: it is installed first.
	@grep -v '^pillow=' constraints.txt > .venv/constraints.txt
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt gradio
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@# What it asks for, torchvision and an old requests, its attacks do without.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps torchattacks
	@touch $@

demo: .venv/ready
	$(BIN)/python examples/certified_curve.py

demo-attack: .venv/ready
	$(BIN)/python examples/robust_accuracy.py

test: .venv/ready
	@# Compiled tests are kept: without them a process of the suite takes ten seconds more to start.
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: .venv/ready
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/evaluations.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/noise_limit.py
	$(BIN)/python benchmarks/compile.py
	$(BIN)/python benchmarks/startup.py
