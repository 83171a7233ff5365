# Everything a person runs here. Each target sets up .venv first, once; a second run takes no time.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is installed besides the bounds of pyproject.toml; .github/constraints has the oldest and the newest versions.
CONSTRAINTS ?= constraints.txt
# Bytes of the two files that decide what is installed: another pin or dependency builds the environment anew.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml $(CONSTRAINTS) | cksum | cut -d' ' -f1)
DOCS := $(subst installed,docs,$(STAMP))
# One thread a worker: the workers are as many as the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
COVERAGE := OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n auto \
	--deselect tests/test_faults.py::test_a_full_disk_is_one_line_and_leaves_nothing

.PHONY: help check demo test test-oldest nightly fuzz coverage emulate bench gate lint types docs setup clean

help:
	@echo "make demo    train a locally connected network on handwritten digits"
	@echo "make check   style, types and all tests that are not slow: before each commit"
	@echo "make test    all tests that need no GPU (and those that do, where there is one)"
	@echo "make test-oldest  the same with the oldest torch and triton that are allowed, in .venv-oldest: gigabytes to download"
	@echo "make nightly  all tests, those too that make test leaves out"
	@echo "make fuzz    5,000 random calls and constructors against the definition; make test takes 200"
	@echo "make coverage  which lines no test of the CPU path, the interpreter or the compiler reaches: docs/dev/coverage.md"
	@echo "make emulate  every kernel's PTX executed on the CPU, before a change of kernels or tiles lands; hours, resumable"
	@echo "make bench   lc_triton beside its peers, here and on a GPU where there is one, the tables and pictures of docs/performance.md; takes long"
	@echo "make gate    static figures of every kernel, before a change of kernels or tiles lands"
	@echo "make docs    the documentation as a site, in site/; runs the notebook of examples/"
	@echo "make lint    style;  make types   mypy --strict, and pyright over what users write;  make clean   remove both environments"

demo: setup
	$(BIN)/lc-triton demo

# All tests, as two processes: TRITON_INTERPRET=1 must be set before triton is imported, and turns the kernels into another class.
define run-tests
status=0; \
$(1) tests --ignore=tests/interpreter || status=1; \
TRITON_INTERPRET=1 $(1) tests/interpreter || status=1; \
exit $$status
endef

check: lint types
	@$(call run-tests,$(PYTEST) -m "not slow and not nightly")

test: setup
	@$(call run-tests,$(PYTEST) -m "not nightly")

# torch as GPU machines often have it; its CUDA build runs on a CPU too.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=.github/constraints/oldest.txt

# The longer tests too. A night's run is `make nightly fuzz emulate gate`.
nightly: setup
	@$(call run-tests,$(PYTEST))

# Other cases at each run. What fails is printed with the line that reproduces it, and tried first at the next run.
fuzz: setup
	@status=0; \
	LC_TRITON_FUZZ=nightly $(PYTEST) tests/fuzz || status=1; \
	LC_TRITON_FUZZ=nightly TRITON_INTERPRET=1 $(PYTEST) tests/interpreter/test_fuzz.py || status=1; \
	exit $$status

# Takes twice as long as the tests. What stays uncovered is listed, with the reason, in docs/dev/coverage.md.
# One test is left out: the disk that it fills is full for the measurement too.
coverage: setup
	@rm -f .coverage .coverage.*
	@status=0; ($(call run-tests,$(COVERAGE))) || status=1; \
	$(BIN)/python -m coverage combine --quiet; \
	$(BIN)/python -m coverage report; \
	exit $$status

# Every kernel and tile, executed from its PTX: about two hours of a core. A second call goes on where the first was stopped. Kernels are
# compiled to PTX only, which must not go to, or come from, the cache of real GPUs.
EMULATED ?= .emulated.jsonl
emulate: setup
	@cache=$$(mktemp -d); \
	TRITON_CACHE_DIR=$$cache OMP_NUM_THREADS=1 $(BIN)/python -m tests.emulator.check --workers 2 --out $(EMULATED) --resume; \
	status=$$?; rm -r $$cache; exit $$status

bench: setup
	$(BIN)/python -m benchmarks run --suite cpu --out benchmarks/results/cpu.json
	$(BIN)/python -m benchmarks run --suite growth --seconds 1 --contenders "F.unfold + bmm" "Tensor.unfold + einsum" \
		--out benchmarks/results/growth.json
	$(BIN)/python -m benchmarks overhead --out benchmarks/results/overhead.json
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	$(BIN)/python -m benchmarks run --device cuda --suite published --dtypes bfloat16 bfloat16/float32 --out benchmarks/results/cuda.json; fi
	$(BIN)/python -m benchmarks report benchmarks/results/*.json

# All kernels the model picks, compiled for three architectures: minutes. Review what it changes in tests/machine/gate.json.
gate: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.machine.gate

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/user_code.py
	$(BIN)/pyright

# The site, built strictly: a link that leads nowhere is an error. The notebook is run and becomes a page.
docs: $(DOCS)
	$(BIN)/jupyter nbconvert --to markdown --execute --output-dir docs/notebooks examples/first_layer.ipynb
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else "lc-triton needs Python 3.10 to 3.13, but $(PYTHON) is %d.%d: call make PYTHON=/path/to/python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[all]"
	@rm -f $(VENV)/.installed-*
	@touch $@

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[docs]"
	@rm -f $(VENV)/.docs-*
	@touch $@

clean:
	rm -rf .venv .venv-oldest build dist site docs/notebooks $(EMULATED)
