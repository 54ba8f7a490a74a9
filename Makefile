# Every command sets up what it needs: a virtual environment in .venv, and for the tests and the benchmark some system
# packages. The stamps in .venv remember what has been done.

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --quiet
# What the commands get on top, as in: make test ARGS="-k gate"
ARGS :=
# Most tests wait more than they compute, and share the machine; those that measure come after them.
TOGETHER = $(PYTHON) -m pytest --numprocesses 3 --quiet -m "not alone"
# What has failed beside others is run once more without them: only what fails alone, too, is a fault and no want of time.
AGAIN = $(PYTHON) -m pytest -m "not alone" --last-failed --last-failed-no-failures none
ALONE = $(PYTHON) -m pytest -m alone

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo picture drawing test race soak cluster-test vm-test check format bench image setup system clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-run ## See a server fall silent between its requests
	@$(PYTHON) -m scripts.demo $(ARGS)

test: $(VENV)/.stamp-dev system ## Run every test
	$(if $(ARGS),$(PYTHON) -m pytest $(ARGS),($(TOGETHER) || $(AGAIN)) && $(ALONE))

soak: $(VENV)/.stamp-dev system ## Ten thousand freezes in pods with requests racing them; probes of pods frozen for 90 s
	FREEZE_PROXY_SOAK=yes $(PYTHON) -m pytest tests/traffic/test_race.py tests/pods/test_probed.py -k "pod or probed" $(ARGS)

cluster-test: $(VENV)/.stamp-dev ## Try it on a real Kubernetes with Knative, end to end; as root, with Go
	@$(PYTHON) -m tests.cluster $(ARGS)

vm-test: $(VENV)/.stamp-dev ## Run the tests of the node on pure cgroup2 with systemd, in a virtual machine
	@scripts/setup-system vm
	@$(PYTHON) -m tests.vm $(ARGS)

race: $(VENV)/.stamp-dev system ## Send a hundred thousand requests around freezes, with nothing before the server
	FREEZE_PROXY_SOAK=yes $(PYTHON) -m pytest tests/traffic/test_race.py -k ambient --timeout 3600 $(ARGS)

check: $(VENV)/.stamp-dev ## Check format, lint, types and the floors of the house
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	@if grep -q '^\[tool.importlinter\]' pyproject.toml; then echo $(VENV)/bin/lint-imports; $(VENV)/bin/lint-imports; fi

format: $(VENV)/.stamp-dev ## Format, and repair what lint can repair
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

bench: $(VENV)/.stamp-dev system ## Measure against nginx, HAProxy and a Go proxy
	$(PYTHON) -m bench $(ARGS)

image: $(VENV)/.stamp-venv ## Build the container images, with the docker that runs here
	@scripts/image $(ARGS)

picture: $(VENV)/.stamp-picture ## Run the demo, draw its picture, write its table into the README
	$(PYTHON) -m scripts.demo --save docs/images/demo.json
	$(PYTHON) -m scripts.picture

drawing: $(VENV)/.stamp-venv ## Draw the picture in docs/how-it-works.md
	$(PYTHON) -m scripts.drawing

setup: $(VENV)/.stamp-dev system ## Set up all that the other commands need

clean: ## Remove what all this has made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp-venv: scripts/setup-venv
	@echo "Making a virtual environment in $(VENV)."
	@scripts/setup-venv $(VENV)
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-venv pyproject.toml
	@echo "Installing freeze-proxy into $(VENV)."
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.stamp-picture: $(VENV)/.stamp-venv pyproject.toml
	@echo "Installing freeze-proxy and matplotlib into $(VENV)."
	@$(PIP) install --editable '.[demo]'
	@touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-dev: $(VENV)/.stamp-venv pyproject.toml
	@echo "Installing freeze-proxy and all that its tests need into $(VENV)."
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.stamp-run $(VENV)/.stamp-picture

# Tests that miss a program say so themselves, so what cannot be installed here is no reason to stop.
system:
	@scripts/setup-system || true
