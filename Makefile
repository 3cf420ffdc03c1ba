# make demo: set up, then scan and explain a small network; make test: set up, then test;
# make docs: the site of the docs; make dist: a wheel and a source archive that are tried out.
# CONTRIBUTING.md explains the rest.
.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-all lint docs dist format bench clean

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Two worker processes: tests of one file stay together and share its fixtures.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# The one shard of the demo's images: written whole or not at all.
PARTS := data/parts/parts-00000.tar

demo: $(VENV)/.ready $(PARTS)
	$(BIN)/zfscale run jobs/demo.yaml
	$(BIN)/zfscale run jobs/explain.yaml --set analyses.occlusion.images.sample=25
	$(BIN)/zfscale gallery runs/demo
	@echo "The gallery is at runs/demo/gallery/index.html: open it in a browser."

test: $(VENV)/.ready-dev
	$(PYTEST) -m "not slow" $(ARGS)

# What takes longer: every network at every stride, a local cluster, object stores, the tutorial.
test-slow: $(VENV)/.ready-dev
	$(PYTEST) -m slow $(ARGS)

test-all: $(VENV)/.ready-dev
	$(PYTEST) $(ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(MAKE) --no-print-directory docs

# Any warning is an error: a dead link, a page outside of the menu, a name that is not in the code.
docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The docs are at build/docs/index.html."

# The demo runs from the wheel in an environment of its own, in a directory without our sources.
dist: $(VENV)/.ready-dev
	rm -rf build/dist dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir dist .
	$(BIN)/python -m venv build/dist/venv
	build/dist/venv/bin/python -m pip --disable-pip-version-check install --quiet \
		--constraint constraints.txt dist/zfscale-*.whl
	cd build/dist && venv/bin/zfscale images parts --count 60 --seed 2 --out data/parts
	cd build/dist && venv/bin/zfscale run ../../jobs/demo.yaml --serial
	cd build/dist && venv/bin/zfscale gallery runs/demo && venv/bin/zfscale verify runs/demo
	@ls -l dist

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find zfscale tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

$(PARTS): | $(VENV)/.ready
	$(BIN)/zfscale images parts --count 600 --seed 2 --out data/parts

# The stamps are newer than what they were made from: setting up again costs nothing,
# and happens by itself when a requirement changes.
$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.ready $@

$(BIN)/python:
	@for python in python3 python3.13 python3.12 python3.11; do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Setting up $(VENV) with $$($$python --version); the first time takes minutes."; \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "No Python 3.11 or newer with its venv module was found. Install one, e.g." \
		"\"apt-get install python3 python3-venv\", and run make again." >&2; \
	exit 1
