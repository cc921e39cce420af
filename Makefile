# Every target works from a fresh clone: it makes .venv, compiles, installs what it needs, says how long that took, runs.
#   make demo       attack digits, purify them, attack the defence
#   make check      linters, types and the quick tests, in about 90 seconds
#   make test       linters, types and all tests
#   make lint, make format, make sanitize, make emulate, make wheel, make clean, make distclean
#   make gpu-check  on a machine with a GPU, offline and without .venv
# PYTHON chooses the interpreter of .venv; DEMO_ARGS, PYTEST_ARGS and GPU_CHECK_ARGS are passed on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=

# Python compiles a module when it is first imported; compiling all that is installed takes pip longer than the rest.
INSTALL := $(BIN)/python -m pip install --quiet --quiet --no-compile --disable-pip-version-check -c constraints.txt
BUILD := $(BIN)/python setup.py --quiet build_ext --inplace
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
NATIVE_FILES := '*.h' '*.cpp' '*.cu' '*.cuh'
NATIVE := $(shell find csrc kernels -type f -not -name '*.py[co]')
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# stage TITLE COMMAND...: says what is being done, and afterwards how long it took.
STAGE := stage() { echo "$$1 ..."; title=$$1; begin=$$(date +%s); shift; "$$@" || exit; \
	echo "$$title: $$(($$(date +%s) - begin)) s"; }

.DELETE_ON_ERROR:
.PHONY: demo check test lint lint-python lint-native lint-types lint-imports format sanitize emulate gpu-check wheel \
	clean distclean

# What the tests need includes what the demonstration needs.
demo: $(VENV)/.installed-$(if $(wildcard $(VENV)/.installed-test),test,demo)
	$(BIN)/fastmalade demo $(DEMO_ARGS)

check: lint
	$(PYTEST) -m "not slow and not repetition and not mnist and not complete" $(PYTEST_ARGS)

test: lint
	$(PYTEST) $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory -j 2 $(SYNC) lint-types lint-imports lint-native lint-python

lint-python:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-native:
	git ls-files $(NATIVE_FILES) | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/python tools/check_layout.py

lint-types:
	$(BIN)/mypy

lint-imports:
	$(BIN)/lint-imports --no-logo --no-cache

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	git ls-files $(NATIVE_FILES) | xargs $(BIN)/clang-format -i

sanitize: $(VENV)/.installed-test
	$(BIN)/python tools/check_native.py address thread

# The CUDA kernels on the CPU as in `make test`, the CUDA extension where there is nvcc, and every GPU generation.
emulate: $(VENV)/.installed-test
	if command -v nvcc; then FORCE_CUDA=1 $(BUILD); fi
	FASTMALADE_COMPLETE_TESTS=1 $(BIN)/python -m pytest tests/backends/cuda tests/tools $(PYTEST_ARGS)

# Offline, with the torch and the nvcc of the machine: no .venv.
gpu-check:
	$(PYTHON) tools/gpu_check.py $(GPU_CHECK_ARGS)

wheel: $(VENV)/.installed-test
	$(BIN)/python -m build --outdir dist

# The demonstration runs on this machine alone, so it does with the widest instruction set there and the portable one.
$(VENV)/.compiled-demo: export FASTMALADE_CPU_ISAS ?= native
$(VENV)/.installed-demo: export FASTMALADE_CPU_ISAS ?= native

# A changed kernel is compiled, no more; pip runs where the Python packages may have changed. It runs setup.py too, which
# then finds everything compiled.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/.compiled-%
	@$(STAGE); stage "installing fastmalade[$*] and some hundred megabytes of packages it needs" \
		$(INSTALL) --no-build-isolation -e '.[$*]'
	@touch $@

.PRECIOUS: $(VENV)/.compiled-%
$(VENV)/.compiled-%: setup.py $(NATIVE) | $(BIN)/python
	@$(STAGE); stage "installing setuptools and pybind11" $(INSTALL) 'setuptools>=77' 'pybind11>=2.12'; \
	stage "compiling the kernels" $(BUILD)
	@touch $@

$(BIN)/python:
	@$(STAGE); stage "making $(VENV)" $(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f fastmalade/_cpu*.so fastmalade/_cuda*.so fastmalade/_build_info.json $(VENV)/.installed-* $(VENV)/.compiled-*

distclean: clean
	rm -rf $(VENV) demo-output
