# make quickstart: data, a short training, samples, workbook.   make test: the test suite.
# make check: the part of it that takes a minute.   make docs: the pages that are generated.
# All make their own virtual environment and may be repeated.
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   takes PyTorch's CPU wheels
#   PYTHON=python3.12, VENV=some/folder, MINUTES=10    do what they say

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 3
TORCH_INDEX ?=
RUN := runs/quickstart
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --timeout 20 --retries 1
DIGITS := zero,one,two,three,four,five,six,seven,eight,nine

TYPES := $(PY) -m mypy
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart results test check types docs soak lint clean

quickstart: $(VENV)/.package
	@if [ -d datasets/digits_train ] && [ ! -d datasets/cifar_train ]; then \
	    echo "Using the handwritten digits of an earlier run (make clean forgets them)"; \
	elif ! $(PY) datasets/cifar10.py; then \
	    echo "CIFAR-10 could not be had: using scikit-learn's handwritten digits instead"; \
	    $(PIP) install -q -c constraints.txt -e '.[digits]' && $(PY) datasets/digits.py; \
	fi
	@if [ -d datasets/cifar_train ]; then \
	    images=cifar preset=cifar10_hour classes=0,1,2,3,4,5,6,7,8,9; \
	else \
	    images=digits preset=digits_minutes classes=$(DIGITS); \
	fi; \
	run=$(RUN)/$$images && \
	$(PY) scripts/image_train.py --preset $$preset --time_budget $(MINUTES) \
	    --data_dir datasets/$${images}_train --log_dir $$run --resume_checkpoint auto && \
	$(PY) scripts/image_sample.py --model_path $$run --classes $$classes --num_samples 20 \
	    --log_dir $$run/samples --overwrite True && \
	printf '%s\n' "" "What lies where:" \
	    "  $$run/results.xlsx       loss, mse, grad_norm and their charts" \
	    "  $$run/samples/*.png      20 samples, a column of each class" \
	    "  $$run/model*.pt ema*.pt  checkpoints; MINUTES=60 make quickstart goes on from them"

results: $(VENV)/.package
	$(PIP) install -q -c constraints.txt -e '.[plots,eval]'
	$(PY) results/reproduce.py

soak: $(VENV)/.test
	$(PY) tests/soak.py kills --minutes 30
	$(PY) tests/soak.py kills --minutes 30 --processes 2
	$(PY) tests/soak.py fuzz

# All tests, lint, and types on the three systems.
test: $(VENV)/.test
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	printf '%s\n' linux darwin win32 | \
	    xargs -P 3 -I % $(TYPES) --platform % --cache-dir .mypy_cache/%
	$(PYTEST)

# In about a minute: lint, types here, and the tests that are not slow.
check: $(VENV)/.test
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	$(TYPES) --cache-dir .mypy_cache/here
	$(PYTEST) -m 'not slow'

docs: $(VENV)/.package
	$(PY) docs/make_flags.py

lint: $(VENV)/.test
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(RUN) build dist *.egg-info datasets/digits_train datasets/digits_test

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.package: $(VENV)/.torch setup.py
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) install -q -c constraints.txt -e '.[test,digits,eval,lsun,parquet,tensorboard,plots,diffusers]'
	@touch $@
