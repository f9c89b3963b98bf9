# make demo, make test and make bench set up all that they need, and never ask.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PATH := $(PATH):/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test lint unit sanitize coverage e2e guests guests-every-kernel guests-debug guests-debug-some bench chart clauses mutants man clean

help: ## Say what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP) ## Make a virtual environment, build, install

COMPILED := $(wildcard src/nodma/ring/*.p* src/nodma/*/*.pxd src/nodma/*/*_engine.py src/nodma/vfio_user/stream.py)

$(STAMP): pyproject.toml setup.py tools/setup.sh $(COMPILED)
	@tools/setup.sh $(PYTHON) $(VENV)
	@touch $@

demo: setup ## Show a disk that cannot touch guest memory at work
	@$(BIN)/nodma demo

test: setup lint unit sanitize coverage e2e guests ## Lint, types, contracts, tests, the demo with a small image, real guests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup
	$(BIN)/pytest --ignore=tests/guests

sanitize: setup ## Run the unit tests of what is compiled with AddressSanitizer and UndefinedBehaviorSanitizer
	tools/sanitize.sh $(BIN)

coverage: setup ## Hold the branch coverage of the device's side, package by package
	tools/coverage.sh $(BIN) 97

mutants: setup ## Change the device's side a little, thousands of times, and see that tests notice: hours; or MUTANTS=window
	@$(BIN)/python -m pip install -q --group mutants
	$(BIN)/python -m tools.mutants $(MUTANTS)

clauses: setup ## Write docs/clauses.md: which code holds a clause, and which test shows it
	$(BIN)/python -m tools.clauses

e2e: setup
	$(BIN)/nodma demo --files 300 --requests 20000

guests: setup ## Boot real guests, with QEMU on three kernels: 15 minutes, and one more to fetch them
	$(BIN)/pytest tests/guests

guests-every-kernel: setup ## Boot real guests, on every kernel also where the newest suffices
	$(BIN)/pytest tests/guests --every-kernel

guests-debug: setup ## Boot them all on a kernel with KASAN, lockdep and more, built once: an hour
	$(BIN)/nodma guest setup --debug-kernel
	$(BIN)/pytest tests/guests --debug-kernel all

guests-debug-some: setup # some of them, and only if that kernel was built
	$(BIN)/pytest tests/guests --debug-kernel some

bench: setup ## Measure, side by side with qemu-storage-daemon and QEMU: ten minutes, or two with BENCH=--quick
	@$(BIN)/python -m benchmarks $(BENCH)

chart: setup ## The same, and draw docs/performance.svg
	@$(BIN)/python -m pip install -q --group bench
	@$(BIN)/python -m benchmarks --chart docs/performance.svg $(BENCH)

man: setup ## Write docs/man and docs/completion, from the commands
	@$(BIN)/python tools/man_pages.py

clean: ## Remove what was made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f src/nodma/*/*.so
	rm -rf src/*.egg-info
