# make report | test | test-all | mutate | lab | train CONFIG=full|small | refresh | lint | check-browser | site
# The first target that you call makes .venv; later ones find it. Where there is no make:
# `pip install -c constraints.txt -e ".[dev]"`, then `python -m koala_nb report`.

PYTHON ?= python3
CONFIG ?= small
MODEL  ?= nano-koala
# Images a probe in the report; verdicts need about 200 independent ones, which a stored run may hold.
IMAGES ?= 100
# make test CONSTRAINTS=oldest: the same with the oldest supported versions, in an environment of its own.
CONSTRAINTS ?=
VENV   := .venv$(addprefix -,$(CONSTRAINTS))
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PINS   := constraints$(addprefix -,$(CONSTRAINTS)).txt
# What is long: `make test` leaves it out. BROWSER=three|all: how many pages and notebooks are opened.
LONG   := -m "not long"
BROWSER ?= three
NBVAL  := $(if $(CONSTRAINTS),--nbval-lax,--nbval) --nbval-current-env --nbval-cell-timeout=600 \
          --nbval-sanitize-with $(CURDIR)/tests/nbval_sanitize.cfg
export PYTHONUTF8 := 1

.PHONY: report test test-all mutate lab train refresh lint check-browser site
.DEFAULT_GOAL := report

$(STAMP): pyproject.toml $(PINS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS) -e ".[dev]"
	touch $@

report: $(STAMP)
	$(BIN)/python -m koala_nb report -p model=$(MODEL) -p n=$(IMAGES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two workers with one thread each; a notebook or a test file stays on one worker. Types and committed
# outputs are checked with the pinned versions only: older ones declare other types and round otherwise.
test test-all: $(if $(CONSTRAINTS),$(STAMP),lint)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --browser=$(BROWSER) $(LONG) $(NBVAL) tests notebooks

test-all: LONG :=
test-all: BROWSER := all
test-all: export KOALA_NB_KILLS := 100
test-all: export KOALA_NB_FUZZ := 10000

# Do the tests notice a small change of the code? A random sample, in a copy of the tree.
MUTATIONS ?= 100
mutate: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py $(MUTATIONS) 0

# Every notebook in JupyterLab and every page, in a headless Chromium (Debian: chromium chromium-driver).
check-browser: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser --browser=all tests

# The collection as a static site in docs/_build/html.
site: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

train: $(STAMP)
	$(BIN)/python -m koala_nb train --config $(CONFIG)

# Whoever changes weights runs this: it measures them again and re-executes every notebook.
refresh: $(STAMP)
	$(BIN)/python -m koala_nb evaluate --model nano-sdxl --n 60 --per-occupation 5
	$(BIN)/python -m koala_nb evaluate
	$(BIN)/python -m koala_nb evaluate attention
	$(BIN)/python -m studies.auditors
	$(BIN)/python -m koala_nb probe bias --model nano-sdxl --runs unspecified
	$(BIN)/python -m koala_nb probe bias --teacher nano-sdxl
	for probe in text composition frequency safety open; do $(BIN)/python -m koala_nb probe $$probe || exit 1; done
	$(BIN)/python -m koala_nb probe composition --model nano-sdxl
	$(BIN)/python -m koala_nb probe frequency --model nano-sdxl --images 2
	$(BIN)/python -m koala_nb refresh
