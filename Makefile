# `make help` lists what there is. Everything lives in .venv; nothing outside this folder changes
# (pip's and the base model's own caches aside), except that `make test` installs a Chromium and an
# nginx on a machine that has none, and says so.
PYTHON ?= python3
ARGS ?=
# Test processes, a file at a time each; one more than two cores, because the browser tests wait
# much of their time. JOBS=0 runs all in one process.
JOBS ?= 3

VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test
DOCS_STAMP := $(VENV)/.installed-docs
# The folder ui under the name that it is imported by: mypy reads no editable installs.
TYPED := $(VENV)/typed

# An environment whose Python is gone, too old or has no pip (a set-up that was cut off) is made
# anew. A stamp holds the folder it was made in: after a move the install runs again.
PY_FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
VENV_WORKS := $(shell $(PY) -c 'import pip; $(PY_FITS)' >/dev/null 2>&1 && echo yes)
ifneq ($(VENV_WORKS),yes)
REMAKE_VENV := FORCE
endif
stale = $(if $(REMAKE_VENV),FORCE,$(if $(filter-out $(CURDIR),$(shell cat $(1) 2>/dev/null)),FORCE))

.DEFAULT_GOAL := help
.PHONY: help demo ui test check format docs clean install wheel FORCE

help: ## list the commands
	@echo "make <command>:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-10s %s\n", $$1, $$2}'
	@echo "Variables: ARGS=\"...\" for demo, ui and test, JOBS=n test processes, PYTHON=python3.12"

demo: $(DEMO_STAMP) ## install, then run the whole loop on the small base (ARGS="--quick")
	@$(VENV)/bin/lorarlhf demo $(ARGS)

ui: $(DEMO_STAMP) ## install, then open the rating pages (ARGS="my-assistant")
	@$(VENV)/bin/lorarlhf ui $(ARGS)

test: $(TEST_STAMP) ## install the test tools, then run every test (ARGS="-k packaging")
	@$(PY) tests/browser/chromium.py
	@$(PY) -m tests.browser.nginx
	@echo "Running the tests (a quarter of an hour on two cores)."
	@PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(TEST_STAMP) ## format, lint and types; changes nothing
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@echo "Checking types (half a minute the first time)."
	@mkdir -p $(TYPED) && ln -sfn "$(CURDIR)/ui" $(TYPED)/lorarlhf_ui
	@MYPYPATH=$(TYPED) $(PY) -m mypy -p lorarlhf -p lorarlhf_ui

format: $(TEST_STAMP) ## put the code in its format and mend what ruff can mend
	@$(PY) -m ruff check --fix --exit-zero --quiet .
	@$(PY) -m ruff format .

docs: $(DOCS_STAMP) ## build the documentation as a site into build/docs
	@$(PY) -c "import sphinx" 2>/dev/null || { \
		echo "make docs needs Python 3.11 or newer, and $(VENV) has $$($(PY) --version 2>&1). Make another: rm -r $(VENV) && make PYTHON=python3.12 docs" >&2; exit 1; }
	@echo "Building the documentation (half a minute)."
	@rm -rf build/docs build/doctrees
	@$(PY) -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs
	@echo "Open build/docs/index.html in a browser."

install: $(DEMO_STAMP) ## only make the environment

wheel: $(TEST_STAMP) ## build what pip installs without a clone: dist/lorarlhf-*.whl
	@$(PY) -m build --no-isolation

clean: ## remove build rubbish and caches; keeps runs/ and .venv
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find lorarlhf ui recipes tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(PY): $(REMAKE_VENV)
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "$(PYTHON) was not found. Install Python 3.10 to 3.13, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c "$(PY_FITS)" || { \
		echo "lorarlhf needs Python 3.10 to 3.13, and $(PYTHON) is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c "import venv, ensurepip" 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments: its venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (a few seconds)."
	@"$(PYTHON)" -m venv --clear $(VENV) || { \
		echo "Making $(VENV) failed; the reason is above. On Debian and Ubuntu it is often a missing package: sudo apt install python3-venv" >&2; exit 1; }

# Stamps come last, so that an install that was cut off is done again.
$(DEMO_STAMP): pyproject.toml constraints.txt $(call stale,$(DEMO_STAMP)) | $(PY)
	@echo "Installing lorarlhf, its rating pages and what they need (a minute or two where packages are near; PyTorch is the large one)."
	@$(PIP_INSTALL) -e .
	@echo "$(CURDIR)" > $@

$(TEST_STAMP): pyproject.toml constraints.txt $(call stale,$(TEST_STAMP)) | $(PY)
	@echo "Installing lorarlhf, its rating pages, what they need and the test tools (a minute or two where packages are near; PyTorch is the large one)."
	@$(PIP_INSTALL) -e ".[test]"
	@echo "$(CURDIR)" > $(DEMO_STAMP)
	@echo "$(CURDIR)" > $@

$(DOCS_STAMP): pyproject.toml constraints.txt $(call stale,$(DOCS_STAMP)) | $(PY)
	@echo "Installing lorarlhf and what builds its documentation (a minute or two where packages are near; PyTorch is the large one)."
	@$(PIP_INSTALL) -e ".[docs]"
	@echo "$(CURDIR)" > $@
