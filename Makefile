# `make demo` and `make test` need Python 3.11 or newer and nothing else. Each makes .venv if there is none.
VENV ?= .venv
WORKDIR ?= runs/demo
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3.13 python3,$(shell \
	$(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN := $(VENV)/bin
# The version that the exports are tested with. It is installed alone and first, so that no later resolve replaces it.
TORCH := torch==2.13.0
# Installed without what they ask for: of that, the tests need only einops, simple-parsing, torch and transformers.
PEERS := dictionary_learning==0.1.0 sae-lens==6.54.12
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Large pages for what malloc hands out (glibc on Linux; others ignore it): XLA's buffers on a CPU come and go with every
# step, and a fifth of its time went into faulting in their pages.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test tests newest lowest drill mutants fuzz lint docs compilers lock release-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/python -m launch.demo --workdir=$(WORKDIR)

# Many tests run the same commands in processes of their own: what one compiled, the next ones read.
tests newest lowest drill: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/.pytest_cache/jax
tests newest lowest drill: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0.3
# Most of the tests' time went into optimising small programs that run for an instant. Programs as users have them are
# tested by newest and lowest, and by the benchmarks.
tests: export JAX_DISABLE_MOST_OPTIMIZATIONS = 1
tests: export XLA_FLAGS = --xla_cpu_use_fusion_emitters=false
test: lint tests

# Files of tests are begun in the order of tests/conftest.py, the longest first.
tests: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST)

# The tests with the newest and with the lowest releases that pyproject.toml admits: make newest PYTHON=python3.13
newest lowest: %: .venv-%-$(notdir $(PYTHON))/.installed
	$(<D)/bin/python $(PYTEST)

# What takes too long for every change, or downloads.
drill: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m drill

# Hours: how many small changes of some modules their tests notice.
mutants: $(VENV)/.installed-test
	$(BIN)/pip install -q -e '.[mutants]'
	$(BIN)/python -m tests.mutants

# Damaged inputs for every reader, each kind in a process with 10 s and 1 GiB; of the binary ones by coverage, too.
fuzz: $(VENV)/.installed-test
	$(BIN)/pip install -q -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --inputs=2000
	$(BIN)/python -m tests.fuzz.with_atheris --seconds=60

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build -q --strict

# For `launch.bench fits` and tests/compiled, which are skipped without them; 1.1 GB.
compilers: $(VENV)/.installed-test
	$(BIN)/python -m launch.benches.absent_devices tpu gpu

# The newest versions for the tests, on each Python that the package runs on.
lock: $(VENV)/.installed-release
	$(BIN)/uv pip compile -q -U pyproject.toml --extra test --extra docs --universal --python-version 3.11 -c $(VENV)/.torch \
		--no-annotate --custom-compile-command 'make lock' -o requirements-test.txt

# Known vulnerabilities, and licences that are not in the list.
release-check: $(VENV)/.installed-release
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r requirements-test.txt
	$(BIN)/python -m docs.licences_page | diff docs/reference/licences.md -

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 1; }
	@echo "Installing into $(VENV), once; this takes some minutes."
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(BIN)/pip
	$(BIN)/pip install -q '$(TORCH)'
	echo '$(TORCH)' > $@

$(VENV)/.installed-demo: pyproject.toml $(BIN)/pip
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml requirements-test.txt $(VENV)/.torch
	$(BIN)/pip install -q -c requirements-test.txt -e '.[test,docs]'
	$(BIN)/pip install -q --no-deps $(PEERS)
	touch $@

.venv-%-$(notdir $(PYTHON))/.installed: pyproject.toml $(VENV)/.installed-release
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q '$(TORCH)'
	$(BIN)/uv pip compile -q --resolution $(if $(filter lowest,$*),lowest-direct,highest) --python $(@D)/bin/python pyproject.toml \
		--extra test --extra docs -c $(VENV)/.torch --no-annotate -o $(@D)/versions.txt
	$(@D)/bin/pip install -q -r $(@D)/versions.txt
	$(@D)/bin/pip install -q --no-deps -e . $(PEERS)
	touch $@

$(VENV)/.installed-release: $(VENV)/.installed-test
	$(BIN)/pip install -q -e '.[release]'
	touch $@

clean:
	rm -rf $(VENV)
