# Everything below works from a fresh clone: it makes .venv, installs what it needs and runs.
#   make demo    make test    make lint    make format    make sanitize    make emulate    make wheel    make clean    make distclean
#   make gpu-check    on a machine with a GPU, offline and without .venv
# PYTHON chooses the interpreter of .venv; DEMO_ARGS, PYTEST_ARGS and GPU_CHECK_ARGS are passed on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=

INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
NATIVE_FILES := '*.h' '*.cpp' '*.cu' '*.cuh'
NATIVE := $(shell find csrc kernels -type f -not -name '*.py[co]')
INSTALLED_FROM := pyproject.toml setup.py constraints.txt $(NATIVE)

.DELETE_ON_ERROR:
.PHONY: demo test lint format sanitize emulate gpu-check wheel clean distclean

demo: $(VENV)/.installed-demo
	$(BIN)/fastmalade demo $(DEMO_ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files $(NATIVE_FILES) | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/python tools/check_layout.py
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	git ls-files $(NATIVE_FILES) | xargs $(BIN)/clang-format -i

sanitize: $(VENV)/.installed-test
	$(BIN)/python tools/check_native.py address thread

# The CUDA kernels on the CPU as in `make test`, and compiled for every GPU generation.
emulate: $(VENV)/.installed-test
	FASTMALADE_COMPLETE_TESTS=1 $(BIN)/python -m pytest tests/backends/cuda tests/tools $(PYTEST_ARGS)

# Offline, with the torch and the nvcc of the machine: no .venv.
gpu-check:
	$(PYTHON) tools/gpu_check.py $(GPU_CHECK_ARGS)

wheel: $(VENV)/.installed-test
	$(BIN)/python -m build --outdir dist

# The build backend is installed too: some tests build packages with it, and they have to run without a network.
$(VENV)/.installed-test: $(BIN)/python $(INSTALLED_FROM)
	@echo "installing fastmalade and its test tools into $(VENV)"
	@$(INSTALL) 'setuptools>=77' -e '.[test]'
	@touch $@

$(VENV)/.installed-demo: $(BIN)/python $(INSTALLED_FROM)
	@echo "installing fastmalade and what its demonstration needs into $(VENV)"
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f fastmalade/_cpu*.so fastmalade/_cuda*.so fastmalade/_build_info.json $(VENV)/.installed-*

distclean: clean
	rm -rf $(VENV) demo-output
