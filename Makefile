# make demo · make serve · make test · make check · make bench · make soak; each makes .venv first when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
SEED ?=
SERVE ?=
OUT ?= demo_output
MINUTES ?= 30
KILLS ?= 200
REQUESTS ?= 20000
CROWD_MINUTES ?= 3
HOSTILE_MINUTES ?= 5

.PHONY: setup demo serve test check bench soak clean

setup: $(VENV)/.installed

# Made anew only when what it is made of has changed.
$(VENV)/.installed: requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.txt into $(VENV); the first time takes a few minutes."
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/roi-inspector demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(SEED),--seed $(SEED)) $(if $(SERVE),--serve)

serve: $(VENV)/.installed
	$(BIN)/roi-inspector serve

# On all cores; the tests of one file share servers, so they stay in one process.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

test: $(VENV)/.installed
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

# Both tables, whatever the first one's limits say; make bench UPDATE=1 also puts them into docs/performance.md.
bench: $(VENV)/.installed
	@status=0; \
	$(BIN)/python -m benchmarks.speed --json build/speed.json $(if $(UPDATE),--update docs/performance.md) || status=1; \
	$(BIN)/python -m benchmarks.load --json build/load.json $(if $(UPDATE),--update docs/performance.md) || status=1; \
	exit $$status

# Kills, nonsense, a crowd, a bad day and a long steady load; make soak UPDATE=1 also puts the figures into docs/reliability.md.
soak: $(VENV)/.installed
	$(BIN)/python -m reliability --kills $(KILLS) --requests $(REQUESTS) --crowd-minutes $(CROWD_MINUTES) \
	  --hostile-minutes $(HOSTILE_MINUTES) --minutes $(MINUTES) --json build/soak.json $(if $(UPDATE),--update docs/reliability.md)

clean:
	rm -rf $(VENV) demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
