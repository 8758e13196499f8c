# Two commands for a machine with Python 3.11 or newer and nothing else set up:
#   make demo   train the example scene and show a view of it beside its photograph
#   make test   run all tests
# Others: make gpu-check (docs/gpu.md), make lint, make clean. PYTHON=... picks the interpreter, JOBS=... the number of test processes.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt tools/bootstrap.py
DEMO := training.iterations=3000 training.max_width=400 patching.max_cameras=8

.PHONY: demo test gpu-check lint clean

demo: $(VENV)/.installed
	$(BIN)/splatpipe run examples/brighton_beach --out demo $(DEMO)
	$(BIN)/splatpipe status demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST)

gpu-check: $(VENV)/.installed-test
	$(BIN)/splatpipe doctor
	$(BIN)/python -m pytest -n 0 -m gpu -rs
	$(BIN)/python benchmarks/gpu_train.py --json gpu_train.json
	$(BIN)/python benchmarks/gaps.py training.device=cuda:0 training.iterations=6000 --json gpu_gaps.json

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.installed: $(INPUTS)
	$(PYTHON) tools/bootstrap.py $(VENV)
	touch $@

$(VENV)/.installed-test: $(INPUTS)
	$(PYTHON) tools/bootstrap.py $(VENV) --extra test
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) demo
