# Every target works from a fresh clone: it makes .venv, compiles, installs what it needs, says how long that took, runs.
#   make demo       attack digits, purify them, attack the defence
#   make check      linters, types and the quick tests, in about 90 seconds
#   make test       linters, types and all tests
#   make fuzz       the property tests on examples drawn at random, fifty times as many
#   make lint       make format      make sanitize      make emulate      make wheel      make clean      make distclean
#   make gpu-check  on a machine with a GPU, offline and without .venv
# PYTHON chooses the interpreter of .venv; DEMO_ARGS, PYTEST_ARGS and GPU_CHECK_ARGS are passed on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=

# Without the bytecode, which is most of pip's work: Python makes that of the modules it imports.
INSTALL := $(BIN)/python -m pip install --quiet --quiet --no-compile --disable-pip-version-check -c constraints.txt
BUILD := $(BIN)/python setup.py --quiet build_ext
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
NATIVE_FILES := '*.h' '*.cpp' '*.cu' '*.cuh'
NATIVE := $(shell find csrc kernels -type f -not -name '*.py[co]')
# What the tests need includes what the demonstration needs.
DEMO_SET := $(if $(wildcard $(VENV)/.installed-test),test,demo)
# stage TITLE COMMAND...: says what is being done, and afterwards how many seconds it took.
STAGE := stage() { title=$$1; shift; echo "$$title ..."; begin=$$(date +%s); "$$@" || exit; \
	echo "$$title: $$(($$(date +%s) - begin)) s"; }; stage

# Packages come while the kernels compile, and the linters run side by side.
MAKEFLAGS += -j2
.DELETE_ON_ERROR:
.PHONY: demo check test fuzz lint lint-python lint-native lint-types lint-imports format sanitize emulate gpu-check wheel \
	clean distclean

demo: $(VENV)/.installed-$(DEMO_SET)
	$(BIN)/fastmalade demo $(DEMO_ARGS)

check: lint
	$(PYTEST) -m "not slow and not repetition and not mnist and not complete" $(PYTEST_ARGS)

test: lint
	$(PYTEST) $(PYTEST_ARGS)

fuzz: $(VENV)/.installed-test
	$(PYTEST) -m hypothesis --hypothesis-profile=fuzz $(PYTEST_ARGS)

lint: lint-types lint-imports lint-native lint-python

lint-python: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-native: $(VENV)/.installed-test
	git ls-files $(NATIVE_FILES) | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/python tools/check_layout.py

lint-types: $(VENV)/.installed-test
	$(BIN)/mypy

lint-imports: $(VENV)/.installed-test
	$(BIN)/lint-imports --no-logo --no-cache

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	git ls-files $(NATIVE_FILES) | xargs $(BIN)/clang-format -i

sanitize: $(VENV)/.installed-test
	$(BIN)/python tools/check_native.py address thread

# The CUDA kernels on the CPU as in `make test`, the CUDA extension where there is nvcc, and every GPU generation.
emulate: $(VENV)/.installed-test
	if command -v nvcc; then FORCE_CUDA=1 $(BUILD) --inplace; fi
	FASTMALADE_COMPLETE_TESTS=1 $(BIN)/python -m pytest tests/backends/cuda tests/tools $(PYTEST_ARGS)

# Offline, with the torch and the nvcc of the machine: no .venv.
gpu-check:
	$(PYTHON) tools/gpu_check.py $(GPU_CHECK_ARGS)

wheel: $(VENV)/.installed-test
	$(BIN)/python -m build --outdir dist

# ---- .venv ----

# The demonstration needs the instruction set of this machine, and no other.
$(VENV)/.objects-demo $(VENV)/.installed-demo: export FASTMALADE_CPU_ISAS ?= native
.SECONDARY: $(VENV)/.build-tools $(foreach set,demo test,$(VENV)/.objects-$(set) $(VENV)/.packages-$(set))

$(VENV)/.installed-%: $(VENV)/.objects-% $(VENV)/.packages-%
	@$(BUILD) --inplace >/dev/null
	@touch $@

$(VENV)/.objects-%: setup.py $(NATIVE) | $(VENV)/.build-tools
	@$(STAGE) "compiling the kernels" $(BUILD)
	@touch $@

# The package without its extensions, which the rule above puts in.
$(VENV)/.packages-%: pyproject.toml constraints.txt | $(VENV)/.build-tools
	@$(STAGE) "installing what fastmalade[$*] needs, some hundred megabytes" \
		env FASTMALADE_NO_EXTENSION=1 $(INSTALL) --no-build-isolation -e '.[$*]'
	@touch $@

$(VENV)/.build-tools: | $(BIN)/python
	@$(STAGE) "installing setuptools and pybind11" $(INSTALL) 'setuptools>=77' 'pybind11>=2.12'
	@touch $@

$(BIN)/python:
	@$(STAGE) "making $(VENV)" $(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f fastmalade/_cpu*.so fastmalade/_cuda*.so fastmalade/_build_info.json
	rm -f $(VENV)/.installed-* $(VENV)/.objects-* $(VENV)/.packages-*

distclean: clean
	rm -rf $(VENV) demo-output
