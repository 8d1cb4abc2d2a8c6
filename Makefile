# make train ARGS="--epochs 3"   trains in an environment of its own
# make test                      runs the suite
# make docs                      builds the documentation in docs/_build/html
# make lowest                    runs the suite with the lowest versions that setup.cfg allows

PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin

.PHONY: train test lint docs lowest

train: .venv/installed
	$(BIN)/python -m pyro_vae.train $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses auto $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# With a fresh environment, because a saved one keeps the old help of the commands.
docs: .venv/installed-docs
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet -c docs . docs/_build/html
	@echo docs/_build/html/index.html

lowest: .venv-lowest/installed-dev
	$(LOWEST)/python -m pytest --numprocesses auto $(ARGS)

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

# Compiled at once, because Python's warnings about Pyro's source would be errors in the tests.
.venv-lowest/installed-dev: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct --compile-bytecode --editable ".[dev]"
	touch $@
