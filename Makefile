# `make` alone lists the targets. Every target first prepares .venv, once; PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# threads that wait without spinning: on a busy machine PyTorch is several times faster so
export OMP_WAIT_POLICY ?= PASSIVE
.DEFAULT_GOAL := help
.PHONY: help demo test bench lab docs colab sync hooks clean
.DELETE_ON_ERROR:

# An environment holds absolute paths, so one that came here with a moved or copied folder is made anew.
$(shell grep -qsF '$(CURDIR)/.venv' .venv/bin/activate || rm -f $(READY))

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## distil the shipped teacher into 2-NFE students, with and without branches, and show the result in demo_out/
	$(BIN)/bdense_demo

# hundreds of processes read the same sources: they are compiled once, also where the environment says not to
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY) ## run every notebook in a fresh kernel and all other tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

bench: $(READY) ## measure what training and sampling cost here, as ratios to peers, in runs/bench/; ARGS='--quick' takes tiny networks
	$(BIN)/bdense_bench runs/bench $(ARGS)

lab: $(READY) ## open the course in JupyterLab (notebooks are cleaned when saved); ARGS='--no-browser --port=9000' goes to JupyterLab
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(BIN)/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

docs: $(READY) ## build the documentation site in _docs/ from the notebooks and their stored outputs, without a network
	$(BIN)/python tools/docs.py

colab: $(READY) ## write the notebooks for Google Colab in _colab/: links that hold there, and a cell that installs the package
	$(BIN)/python tools/colab.py

sync: $(READY) ## after a change to a notebook: format, export the library, clean the notebooks, write README.md and CITATION.cff, lint
	$(BIN)/python -m ruff format --quiet
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py
	$(BIN)/python -m ruff check --quiet

hooks: $(READY) ## opt in: let git merge notebooks cell by cell in this clone
	git config --local include.path ../.gitconfig

clean: ## remove what was built or written by a run (.venv stays; delete it by hand to start afresh)
	rm -rf build dist *.egg-info _docs _colab _screenshots _proc demo_out .pytest_cache
	find . -path ./.venv -prune -o -path ./.git -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

$(READY): settings.ini setup.py pyproject.toml
	@grep -qsF '$(CURDIR)/.venv' .venv/bin/activate || { \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo 'bdense-nb needs Python 3.11 or newer and "$(PYTHON)" is not; name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }; \
	  "$(PYTHON)" -m venv --clear .venv; }
	@echo 'installing what bdense-nb needs into .venv (minutes the first time, and about 6 GB)'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'
	@touch $(READY)
