# make demo | test | lint | types | docs | format | clean
#
# The environment is made once in .venv from pinned files. TORCH names the build to install:
#   make demo TORCH="torch==2.13.0+cpu"     PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
TORCH ?= -r requirements/torch.txt
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= auto

.PHONY: demo test lint types docs format clean env

env: $(VENV)/.installed

# torch first, then everything else without asking the packages what they depend on: fastmri declares
# torchvision, never imports it, and a torchvision of another build breaks torch.
$(VENV)/.installed: requirements/torch.txt requirements/runtime.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/runtime.txt -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: env
	$(BIN)/python fastmri_plugin/train.py --challenge singlecoil --accel 4
	$(BIN)/python fastmri_plugin/train.py --challenge singlecoil --accel 4 --model unrolled_mixer

test: env
	$(BIN)/python -m pytest -n $(JOBS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

# The site in site/, in an environment of its own. It loads nothing from elsewhere.
docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet
	@! grep -rnE --include='*.html' '<(script|img|iframe)[^>]+src="?(https?:)?//|<link[^>]+rel="?(stylesheet|preconnect)[^>]+(https?:)?//' site

$(VENV)-docs/.installed: requirements/docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --no-deps --no-compile -r requirements/docs.txt
	touch $@

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-docs site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
