# What a developer types. Stamp files in the virtual environment make a second call cheap.
#
#   make quickstart   install, then the whole chain on the shipped demo model (no GPU needed)
#   make test         everything that needs no GPU: ruff, mypy, import contracts, hadolint, pytest
#   make check        the same without the slow tests: the gate before a commit
#   make soak         what a test tries a few times, many times over: hours, and not part of make test; the fuzzed
#                     readers alone, or some of them: make soak MINUTES=1 READERS=recipe,lint
#   make mutants      take each mend out of a copy, and see the test of it fail: an hour, and not part of make test
#   make format       let ruff format the tree
#   make docs         write the pages of docs/ that the code itself tells: recipes, Python API, exit codes, faults
#   make lock         write what the release image installs, with the hash of every wheel
#   make wheel        build the wheel into dist/: what pip installs where there is no clone
#   make sbom         the wheel, and beside it what it brings with it, as CycloneDX
#   make clean        remove the environment, caches and builds; runs/ stays
#
# torch: pip takes the build its own configuration offers. On a machine without a GPU point pip at a CPU build first
# (for instance `make quickstart PIP_FLAGS='--find-links DIR'`); the default wheel brings several GB of CUDA.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
RUN_DIR ?= runs/quickstart
# two processes, a file of tests in one of them: its fixtures are made once; the files of many small tests come last,
# so that both processes end at about the same time
PYTEST_FLAGS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt $(PIP_FLAGS)
SOURCES := gacq_deploy cli tests examples benchmarks docker docs

# some containers set it: every process of the tests would then compile each module anew
unexport PYTHONDONTWRITEBYTECODE
# tiny operators: more threads than this make the tests slower; recipes state their own
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test check soak mutants lint format docs lock wheel sbom clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gacq-deploy needs Python >= 3.11; $(PYTHON) is older. Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) has no venv. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt pip
	touch $@

# torch goes first and alone: its pin then decides the build before anything else may ask for another
$(VENV)/.stamp-runtime: $(VENV)/.stamp-venv pyproject.toml constraints.txt
	@echo "Installing torch, diffusers, onnxruntime and gacq-deploy into $(VENV) ..."
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable '.[cpu,calibrate]'
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-runtime
	@echo "Installing the development tools ..."
	$(INSTALL) --editable '.[cpu,calibrate,openvino]' --group dev
	touch $@

# The compiler that the tests marked `rtx` run: 96 MB to fetch. Where it cannot be had they are skipped and say so;
# continuous integration does not go on without it.
$(VENV)/.stamp-rtx: $(VENV)/.stamp-dev
	@echo "Installing TensorRT-RTX ..."
	@if $(INSTALL) --editable '.[cpu,calibrate,openvino,rtx]'; then touch $@; \
	elif [ -n "$$CI" ]; then echo "TensorRT-RTX cannot be installed, and CI is set: stop." >&2; exit 1; \
	else echo "TensorRT-RTX cannot be installed: the tests marked rtx will be skipped." >&2; fi

quickstart: $(VENV)/.stamp-runtime
	$(BIN)/gacq-deploy quickstart -o $(RUN_DIR)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run docker/*.sh

test: lint $(VENV)/.stamp-rtx
	$(BIN)/python -m pytest -m "not gpu and not soak" $(PYTEST_FLAGS)

check: lint $(VENV)/.stamp-rtx
	$(BIN)/python -m pytest -m "not gpu and not slow and not soak" $(PYTEST_FLAGS)

soak: $(VENV)/.stamp-rtx
	$(if $(READERS),,$(BIN)/python -m pytest -m soak $(PYTEST_FLAGS))
	$(BIN)/python -m benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(READERS),--readers $(READERS))

mutants: $(VENV)/.stamp-rtx
	$(BIN)/python -m benchmarks.mutants $(MUTANTS)

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-runtime
	$(BIN)/python -m docs.generate

lock: $(VENV)/.stamp-dev
	$(BIN)/python -m docker.lock

# without isolation: the build backend is one of the development tools, and nothing is fetched
wheel: $(VENV)/.stamp-dev
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

sbom: wheel
	$(BIN)/python -m docker.sbom dist/gacq_deploy-*.whl

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
