# make demo    train four small networks on freshly rendered events, film them side by side; all in demo/
# make board   TensorBoard on what the demo logged, or on LOGS=...: open the address that it prints
# make test    ruff and the whole test suite
# make slurm-test   sweep.sh on a real SLURM of two nodes, started for it: needs root, slurm-wlm and munge; two to three minutes
# make mutants  change the code in 300 places, one at a time, and count how many the tests find; some minutes
# make clean   remove .venv and demo/
# The first call installs into .venv (PYTHON=python3.12 picks another Python, 3.10 or later); later ones start at once.

PYTHON ?= python3
BIN := .venv/bin
LOGS ?= demo/logs

.PHONY: demo board test slurm-test mutants lint clean

demo: .venv/runtime.stamp
	$(BIN)/python -m nrf demo

board: .venv/runtime.stamp
	$(BIN)/tensorboard --logdir $(LOGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

slurm-test: .venv/development.stamp
	SLURM_TEST=1 $(BIN)/python -m pytest -s tests/commands/test_slurm.py

mutants: .venv/development.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants

lint: .venv/development.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/lint-imports
	$(BIN)/mypy

# A stamp is touched only after everything before it went well. Development follows runtime: pip never runs twice at a time.
.venv/development.stamp: requirements-dev.txt requirements.txt .venv/runtime.stamp
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@

.venv/runtime.stamp: requirements.txt .venv/created.stamp
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

.venv/created.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 or later" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than 3.10: name a later one, e.g. make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "python3-venv is missing: install it, e.g. apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

clean:
	rm -rf .venv demo/
