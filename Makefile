# ditquant's commands. `make demo` and `make test` begin from a fresh clone; the rest is `snakemake`.
#
# Written for GNU make 3.81 and POSIX sh, which is what macOS brings.

VENV := .venv
BIN := $(VENV)/bin

# Where MLX computes: cpu (Linux; Metal on macOS) or cuda13 (Linux with an NVIDIA GPU).
EXTRA ?= cpu
# The Python that makes .venv; without it the newest of those on the PATH.
PYTHON ?=
# More words for Snakemake in `make demo`, for pytest in `make test`, for uv in `make lock`, and for
# benchmarks/faults.py in `make faults`.
SNAKEMAKE_ARGS ?=
PYTEST_ARGS ?=
FAULTS_ARGS ?=
LOCK_ARGS ?=
# What `make run` runs: a configuration laid over config/config.yaml, and a target of the workflow.
CONFIGFILE ?=
TARGET ?=

REPORT := results/demo/report/index.html

.PHONY: help setup demo run real-size tables test faults lint format lock clean-env

help:
	@echo 'make demo       set-up, then the whole workflow on the demo model; ends with the path of the report'
	@echo 'make run        set-up, then Snakemake with CONFIGFILE=config/sd3-medium.yaml, TARGET=report, SNAKEMAKE_ARGS=-n'
	@echo 'make test       set-up, then every check and test'
	@echo 'make real-size  set-up, then the workflow on a random model of the size of SD3-medium (needs a GPU)'
	@echo 'make tables     set-up, then the tables of the documents, rendered from the records of benchmarks'
	@echo 'make faults     set-up, then kills, power cuts, damaged files and bad input, and what came of them'
	@echo 'make setup      only the set-up of $(VENV); EXTRA=cuda13 for an NVIDIA GPU on Linux, PYTHON=... to choose'
	@echo 'make lint       only the checks: ruff, mypy, snakemake --lint, snakefmt'
	@echo 'make format     ruff format and snakefmt, in place'
	@echo 'make lock       resolve the pins of pyproject.toml into the lock files again (needs uv)'
	@echo 'make clean-env  remove $(VENV)'

setup:
	@PYTHON='$(PYTHON)' sh envs/setup.sh '$(EXTRA)'

# Without an accelerator the cores are the accelerators: one model job each, of one thread.
CPU_ONLY := $(shell test "$$(uname -s)" = Linux && test '$(EXTRA)' = cpu && getconf _NPROCESSORS_ONLN)

demo: setup
	@$(BIN)/python -m snakemake $(if $(CPU_ONLY),--resources gpu=$(CPU_ONLY)) --cores all $(SNAKEMAKE_ARGS)
	@test -f $(REPORT) || { echo 'the run ended without $(REPORT)' >&2; exit 1; }
	@echo "The report: $$(pwd)/$(REPORT)"

# Snakemake answers a configuration file that does not exist, or is none, with a Python traceback.
run: setup
	@test -z '$(CONFIGFILE)' || test -f '$(CONFIGFILE)' || { \
	  echo 'There is no configuration file $(CONFIGFILE). In config/ there are:' config/*.yaml >&2; exit 2; }
	@test -z '$(CONFIGFILE)' || PYTHONPATH=scripts $(BIN)/python -m ditquant.planning.config_files '$(CONFIGFILE)'
	@$(BIN)/python -m snakemake $(if $(CONFIGFILE),--configfile '$(CONFIGFILE)') $(SNAKEMAKE_ARGS) -- $(TARGET)

# With a GPU, 25 GB of disk and no network; its record is benchmarks/results/real_size.json.
real-size: setup
	@$(BIN)/python benchmarks/real_size.py $(if $(SNAKEMAKE_ARGS),--snakemake='$(SNAKEMAKE_ARGS)')

# Tables of the documents out of the records, and figures of the text that no record has.
tables: setup
	@$(BIN)/python benchmarks/render.py

# Two processes, each with the tests of one file at a time, in the order of tests/conftest.py;
# PYTEST_ARGS=-n0 tests in one.
IN_PARALLEL = --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A failed check does not hide the tests' result, and the summary of pytest comes last.
test: setup
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS) || status=1; \
	exit $$status

# Half an hour; power is cut where it runs as root on Linux. The record is renewed.
faults: setup
	@$(BIN)/python benchmarks/faults.py --record benchmarks/results/faults $(FAULTS_ARGS)

# Every check runs, whatever the one before found.
lint: setup
	@status=0; \
	run() { echo "$$*"; "$$@" || status=1; }; \
	run $(BIN)/python -m ruff check .; \
	run $(BIN)/python -m ruff format --check .; \
	run $(BIN)/python -m mypy; \
	run $(BIN)/python -m snakemake --lint; \
	run $(BIN)/snakefmt --check Snakefile rules; \
	exit $$status

format: setup
	@$(BIN)/python -m ruff format .
	@$(BIN)/snakefmt Snakefile rules

# Existing pins stay unless pyproject.toml asks for others; LOCK_ARGS=--upgrade renews all.
# The second lock follows the first, so that both machines run the same versions.
UV_LOCK = $$uv pip compile pyproject.toml --universal --extra dev --generate-hashes --quiet \
	--no-emit-index-url --custom-compile-command 'make lock' $(LOCK_ARGS)
lock:
	@uv=$$(command -v $(BIN)/uv || command -v uv) || \
	{ echo 'make lock needs uv: $(BIN)/python -m pip install uv' >&2; exit 1; }; \
	$(UV_LOCK) --extra cpu --output-file requirements.lock && \
	$(UV_LOCK) --extra cuda13 --constraint requirements.lock --output-file requirements-cuda13.lock

clean-env:
	rm -rf $(VENV)
