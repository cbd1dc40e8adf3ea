# Two commands matter: `make demo` and `make test`. Both set up everything they need.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# What apt-get brings is installed beside the virtual environment.
MAKEFLAGS += --jobs=2

PYTHON ?= python3
MINOR = $(shell $(PYTHON) -c 'import sys; print(sys.version_info.minor)')
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

# Images of machines set it to stay small; every process would compile again what it imports of ours.
unexport PYTHONDONTWRITEBYTECODE

# PyTorch's CPU build where the machine offers one, else the build of the package index.
TORCH_LOCK := core/torch.$(if $(wildcard $(addsuffix /torch-*+cpu*.whl,$(UV_FIND_LINKS))),cpu.)lock

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Importing a module compiles it, once; to compile all 25,000 that there are takes four times as long.
IMPORTED := torch,transformers.trainer,trl.trainer.sft_trainer,peft,datasets,evaluate \
  prefect.server.api.server,mlflow.server,bentoml,boto3

.PHONY: setup
setup: $(READY) ## Make .venv from the locks

$(READY): locks/dev.lock $(TORCH_LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: setting up: $$($(PYTHON) --version) is too old; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 4; }
	@for link in src/weighbridge/*; do case $$link in */__init__.py|*/py.typed|*/__pycache__) ;; *) test -L $$link || { echo "error: setting up: $$link is no link, though it is one in git; run: git config core.symlinks true && git checkout -- src"; exit 4; };; esac; done
	@echo "setting up $(VENV) (1.8 GB, from locks/dev.lock and $(TORCH_LOCK))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -oE '^uv==[0-9.]+' locks/dev.lock)"
	@eval "$$($(PYTHON) -I core/uv_settings.py)"; $(BIN)/uv pip sync --quiet --python $(BIN)/python locks/dev.lock $(TORCH_LOCK)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(foreach modules,$(IMPORTED),$(BIN)/python -c "import $(modules)" >/dev/null 2>&1 & )wait
	@touch $@

# What no package index of Python's carries: $(call needs,COMMAND THAT FINDS IT,NAME,PACKAGE)
PATH := $(PATH):/usr/sbin:/sbin
define needs
	@{ $(1); } >/dev/null 2>&1 || { \
	  command -v apt-get >/dev/null || { echo "error: $(2) is missing, and there is no apt-get here to install it with; install $(3), then run: make $(MAKECMDGOALS)"; exit 4; }; \
	  test "$$(id -u)" = 0 && SUDO= || SUDO=sudo; \
	  echo "installing $(3) with apt-get"; \
	  { $$SUDO apt-get install -qq -y $(3) || { $$SUDO apt-get update -qq && $$SUDO apt-get install -qq -y $(3); }; } >/dev/null 2>&1 \
	  || { echo "error: apt-get could not install $(3); install it, then run: make $(MAKECMDGOALS)"; exit 4; }; \
	}
endef

.PHONY: system
system: ## Install haproxy, where it is missing
	$(call needs,command -v haproxy,haproxy,haproxy)

.PHONY: servers
servers: system
	$(call needs,command -v postgres || ls /usr/lib/postgresql/*/bin/postgres,postgres,postgresql)
	$(call needs,ldconfig -p | grep -F libpython3.$(MINOR).so.1.0,libpython3.$(MINOR).so.1.0,libpython3.$(MINOR))

.PHONY: demo
demo: system $(READY) ## A base model goes in, an endpoint that answers comes out
	@$(BIN)/python -m examples.support_tickets --shared
	@WEIGHBRIDGE_DEMO="$$($(BIN)/python -m examples.support_tickets --where)" $(BIN)/weighbridge run configs/demo.yaml

# In the background: the tests begin with what is there.
.PHONY: environments
environments: $(READY)
	@$(BIN)/python -m tests.environments </dev/null >/dev/null 2>&1 &

# Tests wait for processes now and then: of two cores, two workers leave 16 % idle, three 8 %.
WORKERS ?= 3

types = { $(BIN)/mypy && $(BIN)/lint-imports --no-logo; }

# Types and layers take a minute where nothing of them is kept: the tests begin beside them. What is
# wrong is said at once, and again as the last line.
.PHONY: test
test: system servers $(READY) environments style ## Lint, types, layers, every test
	@{ said=$$($(types) 2>&1) || { echo "$$said"; exit 1; }; } & checks=$$!; \
	MAKEFLAGS= $(BIN)/python -m pytest --tx "$(WORKERS)*popen//python=$(BIN)/python -m tests.warm.xdist_worker" --dist loadfile --no-loadscope-reorder $(PYTEST); tests=$$?; \
	wait $$checks || { echo "error: checking types and layers: see above, or run: make lint"; exit 1; }; \
	exit $$tests

.PHONY: style
style: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

.PHONY: lint
lint: style ## Style, types and layer contracts
	@$(types)

.PHONY: bench
bench: $(READY) ## One benchmark: make bench NAME=serving ARGS=--quick
	@test -n "$(NAME)" || { echo "error: which one? NAME is one of: $(basename $(notdir $(shell grep -l "^def main" benchmarks/*.py)))"; exit 2; }
	@$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

.PHONY: lock
lock: $(READY) ## Resolve every environment again: make lock NAMES="llama_cpp gguf"
	@PATH="$(BIN):$$PATH" $(BIN)/python locks/update.py $(NAMES)

.PHONY: clean
clean: ## Remove the virtual environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist *.egg-info
