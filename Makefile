# Everything runs in .venv, which is made on first use and brought up to date when the files it depends on change.
PYTHON ?= python3
PY := .venv/bin/python
PAGE := src/anysam/serve/page/index.html
PAGE_SOURCES := $(shell find web/src web/public -type f 2>/dev/null) $(wildcard web/*.html web/*.ts web/*.json)
# Two processes of one thread each: on two cores this takes about half the time of one process with two threads.
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal
# All else works without the page; its tests then say that they are skipped.
BUILD_PAGE := if command -v npm > /dev/null; then $(MAKE) --no-print-directory page || true; fi
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

.PHONY: help demo page screenshot test check fix bench docs

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/run.done  ## segment a photograph by a point, a box and altogether; writes out/demo
	$(PY) examples/demo.py --out out/demo

page: $(PAGE)  ## build the web page into the package, where its sources changed (needs Node.js)

test: .venv/test.done  ## run all tests
	@$(BUILD_PAGE)
	$(TEST)

screenshot: .venv/test.done page  ## photograph the page for the README (needs Chromium)
	node web/e2e/screenshot.mjs docs/page.jpg

check: .venv/test.done  ## formatting, lint, types, generated docs and all tests: run before every commit
	@$(BUILD_PAGE)
	$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy && $(PY) docs/generate.py --check
	$(TEST)

fix: .venv/test.done  ## format, repair what the linter can repair, write the generated docs again
	$(PY) -m ruff format . && $(PY) -m ruff check --fix . && $(PY) docs/generate.py

bench: .venv/test.done  ## measure speed and memory: the numbers that the documents claim
	for script in benchmarks/*.py; do $(PY) $$script || exit 1; done

docs: .venv/run.done  ## write the documents that are generated from the code
	$(PY) docs/generate.py

$(PY):
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

.venv/run.done: requirements/run.txt pyproject.toml | $(PY)
	@echo "Installing into .venv: about 1 GB, a few minutes the first time"
	@$(PIP) -r requirements/run.txt && $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/test.done: requirements/test.txt .venv/run.done
	@$(PIP) -r requirements/test.txt
	@touch $@

$(PAGE): web/node_modules/.done $(PAGE_SOURCES)
	@cd web && npm run --silent build

web/node_modules/.done: web/package.json web/package-lock.json
	@node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || { \
		echo "The page is built with Node.js 20.19 or newer and its npm, which are not here: https://nodejs.org" >&2; exit 1; }
	@echo "Installing what builds the page into web/node_modules: about 250 MB"
	@cd web && npm ci --silent && touch node_modules/.done
