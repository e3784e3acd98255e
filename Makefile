# Needs Python 3.11 or later (with venv and pip) and make. Every target builds
# the environment .venv by itself, once.

PYTHON ?= python3
EXTRAS ?= tensorflow-cpu,datasets,plot,export,docs,test
# Options for pytest, as in: make test PYTEST_ARGS="-x tests/datasets"
PYTEST_ARGS ?= -n 2

# The protos of TensorFlow Serving (30 kB), for the tests. All that they need
# comes with TensorFlow; as a dependency they would bring a second one.
PROTOS := $(if $(findstring test,$(EXTRAS)),tensorflow-serving-api)

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

# The oldest releases that setup.cfg allows, each with its patches.
# TensorFlow 2.19 needs protobuf 5, for which newer metadata do not load.
OLDEST ?= keras==3.14.* tensorflow-cpu==2.19.* tensorflow-metadata==1.17.*
OLDEST_RUN := .venv-oldest/bin/python

.PHONY: help install quickstart test test-oldest lint format wheel-test
.PHONY: docs benchmark quality clean

help:
	@echo "make quickstart   train on real data with three strategies"
	@echo "make test         run all tests"
	@echo "make test-oldest  run them on the oldest Keras and TensorFlow"
	@echo "make lint         check style and format (make format: mend them)"
	@echo "make docs         build the pages of docs/ into build/docs"
	@echo "make wheel-test   run the quickstart from a wheel in a new environment"
	@echo "make benchmark    measure step times into benchmarks/README.md (50 minutes)"
	@echo "make quality      compare how methods train, on two cores (an hour)"
	@echo "make clean        remove what was built, but keep .venv"

# `installed` holds what was installed from: file times alone mean nothing after
# a `git clone` or a change of branch, and an equal environment must not make
# pip ask the network. The folder is in it since a copied tree has a copied
# environment, which still points to the original.
WANTED = { echo "$(CURDIR) [$(EXTRAS)] $(PROTOS)"; cat setup.cfg pyproject.toml; }

install:
	@$(WANTED) | cmp -s - $(INSTALLED) || { \
	  set -e; \
	  echo "Installing mtlkeras[$(EXTRAS)] into $(VENV)"; \
	  $(PYTHON) -m venv $(VENV); \
	  $(RUN) -m pip install --disable-pip-version-check --progress-bar off \
	    --quiet --editable ".[$(EXTRAS)]"; \
	  test -z "$(PROTOS)" || $(RUN) -m pip install \
	    --disable-pip-version-check --progress-bar off --quiet --no-deps \
	    $(PROTOS); \
	  $(WANTED) > $(INSTALLED); \
	}

quickstart: install
	$(RUN) examples/quickstart.py

test: install
	$(RUN) -m pytest $(PYTEST_ARGS)

# In an environment of its own. Not the documentation and the packaging, which
# are the same with any release.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST_RUN) -m pip install --disable-pip-version-check \
	  --progress-bar off --quiet --editable ".[$(EXTRAS)]" $(OLDEST)
	$(OLDEST_RUN) -m pytest $(PYTEST_ARGS) --ignore=tests/docs \
	  --ignore=tests/examples --ignore=tests/test_packaging.py

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Every warning is an error; `make test` runs the code of the pages. Begins anew
# each time: docstrings are no files that Sphinx watches.
docs: install
	rm -rf build/docs
	TF_CPP_MIN_LOG_LEVEL=3 $(RUN) -m sphinx --fail-on-warning --keep-going \
	  --quiet docs build/docs
	@echo "Built build/docs/index.html"

# The wheel in an environment that has never seen the checkout. `build/` goes
# first: setuptools would pack files that were deleted since the last build.
wheel-test: install
	rm -rf build dist
	$(RUN) -m pip wheel --no-build-isolation --no-deps --quiet \
	  --wheel-dir dist .
	rm -rf build
	mkdir -p build/wheel-test
	$(PYTHON) -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python -m pip install \
	  --disable-pip-version-check --progress-bar off --quiet \
	  "$$(echo dist/*.whl)[tensorflow-cpu,datasets,plot]"
	cp examples/quickstart.py build/wheel-test
	cd build/wheel-test && venv/bin/python quickstart.py

benchmark: install
	$(RUN) -m benchmarks.speed run --write

# Resumes: only what is missing from benchmarks/quality/results is computed.
quality: install
	$(RUN) -m benchmarks.quality run cpu --processes 2
	$(RUN) -m benchmarks.quality table cpu --write
	$(RUN) -m benchmarks.quality plot cpu

# Keeps .venv and .venv-oldest, which may be hard to get again; `rm -rf` them.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	rm -f quickstart.keras quickstart.png
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune \
	  -exec rm -rf {} +
