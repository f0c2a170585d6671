# `make` lists what there is. Works with GNU make 3.81 and newer (macOS has 3.81).
#
# On Linux without an NVIDIA GPU, this spares gigabytes of CUDA libraries:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make quickstart

PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.installed

CHECK_VERSION = -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, and \
	%s is %d.%d. Delete .venv if it lies there, and name a newer one: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'

.DELETE_ON_ERROR:
.PHONY: help quickstart demo test fix clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

quickstart: $(ENV) outputs/python_reference.txt ## train a small BERT on Python's own documentation, offline, and draw its curves
	model="$$($(BIN)/python -m tools.offline_model)" && HF_HUB_OFFLINE=1 $(BIN)/accelerate launch \
		--config_file accelerate_config.yaml run_mlm.py --config examples/quickstart_mlm.yaml \
		--model "$$model" --overwrite_output_dir
	$(BIN)/python -m tools.report outputs/quickstart_mlm

# Flags go into DEMO, as in: make demo DEMO="--ner outputs/ner --port 8000"
demo: $(ENV) ## open a local page to try the models in outputs/ on; trains small ones first where there are none
	$(BIN)/python -m tools.demo $(DEMO)

test: $(ENV) ## run the tests, except the slow ones (.ci/run runs everything)
	$(BIN)/python -m pytest

fix: $(ENV) ## repair what ruff can repair, and rewrite sections that differ from their module in utils/
	$(BIN)/python -m ruff check --fix . ; status=$$?; $(BIN)/python -m tools.check_copies --fix && exit $$status

clean: ## remove what quickstart, demo and the tests wrote; .venv and all other outputs stay
	rm -rf outputs/quickstart_mlm outputs/demo_* outputs/python_reference.txt .pytest_cache .ruff_cache
	rm -rf __pycache__ tools/__pycache__ utils/__pycache__ tests/__pycache__ benchmarks/__pycache__
	@rmdir outputs 2> /dev/null || true

outputs/python_reference.txt: | $(ENV)
	@mkdir -p outputs
	$(BIN)/python -m tools.python_reference $@

# .unfinished stands in a new .venv until all is installed: an environment that still has it, or whose Python does not
# start, was interrupted while it was made, and is made anew. One that was made by hand is only added to.
# bin goes first, so that an interrupted deletion is seen, too.
$(ENV): requirements.txt requirements-dev.txt constraints.txt
	@if [ -e .venv/.unfinished ] || ! $(BIN)/python -c '' 2> /dev/null; then \
		$(PYTHON) $(CHECK_VERSION) && rm -rf $(BIN) .venv && mkdir .venv && touch .venv/.unfinished && \
		echo "Making .venv" && $(PYTHON) -m venv .venv; \
	fi
	@$(BIN)/python $(CHECK_VERSION)
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install -r requirements-dev.txt -c constraints.txt
	@rm -f .venv/.unfinished
	@touch $@
