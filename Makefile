# make train ARGS="--epochs 3"   trains in an environment of its own
# make test                      runs the suite
# make docs                      builds the documentation in docs/_build/html

PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint docs

train: .venv/installed
	$(BIN)/python -m pyro_vae.train $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses auto $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-docs
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . docs/_build/html
	@echo docs/_build/html/index.html

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[report,mnist5k]"
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $@
