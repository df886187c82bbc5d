# From a bare machine: `make demo`, then `make test`. Python 3.11 or newer; no GPU, no Docker.
PYTHON ?= python3
TORCH ?= 2.13.0
# Where torch comes from. A CPU build saves gigabytes: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
export SLUICE_ROOT ?= models
# What serves a candidate while it is asked: make demo ENGINE=vllm VLLM=/path/to/its/environment
ENGINE ?= embedded
export SLUICE_ENGINE = $(ENGINE)
export VLLM

TOY_RECIPES = $(addprefix recipes/toy/,baseline.yaml v2.yaml v7a.yaml v7b.yaml)
# Every bench but what they share; the one of the real server where VLLM names its environment.
BENCHES = $(filter-out bench/measuring.py $(if $(VLLM),,bench/evaluate.py),$(wildcard bench/*.py))
INSTALL = bin/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults lint envs locks images pin toy clean python bench bench-small

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "  make %-11s %s\n", $$1, $$2 }'

# A failed gate (exit code 1) is part of the story; any other failure ends the demo.
demo: .venv/.core .venv-prune/.done .venv-eval/.done ## the whole line on a toy that is a real model: prune, quantise, evaluate, gate, promote
	@.venv/bin/registry init
	@.venv/bin/registry add toy stages/toy/checkpoint
	@.venv/bin/registry run --local $(TOY_RECIPES) || [ $$? -eq 1 ]
	@.venv/bin/registry ls
	@echo "load it from: $$(.venv/bin/registry path best)"

test: envs .venv/.dev .venv-prune/.test .venv-train/.test .venv-eval/.test ## every check and every test
	@tests/run

# `make test` injects a part of them, spread evenly.
test-faults: .venv/.dev ## every fault at every change to the disk: kills, errors, full disks, power cuts, races, damage
	@SLUICE_FAULTS=all .venv/bin/python -m pytest tests/faults

# Each prints its table and how it stands to its aims; peers are installed on first use.
bench: envs ## how fast it is, beside what people use now: minutes each, tens of GB of disk
	@for topic in $(BENCHES); do .venv-prune/bin/python $$topic || exit 1; done

bench-small: envs ## the same on small inputs; fails where a ratio is outside twice its aim
	@for topic in $(BENCHES); do .venv-prune/bin/python $$topic --small || exit 1; done

lint: .venv/.dev ## ruff, mypy, import-linter
	@tests/lint

envs: .venv/.core .venv-prune/.done .venv-train/.done .venv-eval/.done ## the environments: .venv and one a stage

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sluice needs Python 3.11 or newer; this is " \
	+ sys.version.split()[0] + ". To do: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11")'

# Each environment is made from its lock; a stamp, written last, says that it is whole.
.venv/.core: locks/core.txt pyproject.toml | python
	@echo "installing .venv (the registry and the gates)"
	@$(PYTHON) -m venv .venv
	@.venv/$(INSTALL) --require-hashes -r locks/core.txt
	@.venv/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: locks/dev.txt .venv/.core
	@echo "installing what checks need into .venv"
	@.venv/$(INSTALL) --require-hashes -r locks/dev.txt
	@touch $@

.venv-prune/.done: locks/prune.txt pyproject.toml | python
	@echo "installing .venv-prune (torch, transformers: the large one)"
	@$(PYTHON) -m venv .venv-prune
	@.venv-prune/$(INSTALL) torch==$(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@.venv-prune/$(INSTALL) --require-hashes -r locks/prune.txt
	@.venv-prune/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv-train/.done: locks/train.txt pyproject.toml | python
	@echo "installing .venv-train (torch, bitsandbytes, peft, trl)"
	@$(PYTHON) -m venv .venv-train
	@.venv-train/$(INSTALL) torch==$(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@.venv-train/$(INSTALL) --require-hashes -r locks/train.txt
	@.venv-train/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv-eval/.done: locks/eval.txt pyproject.toml | python
	@echo "installing .venv-eval (the harness)"
	@$(PYTHON) -m venv .venv-eval
	@.venv-eval/$(INSTALL) --require-hashes -r locks/eval.txt
	@.venv-eval/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv-%/.test: locks/test.txt .venv-%/.done
	@.venv-$*/$(INSTALL) --require-hashes -r locks/test.txt
	@touch $@

# Needs uv. torch is in no lock: an override that never applies leaves it out. Prune comes first, for transformers says
# which huggingface-hub the others may have.
LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --quiet \
	--override locks/no-torch.in --no-emit-package torch --extra build
locks: ## resolve every lock again, newest versions (needs uv)
	@$(LOCK) --upgrade --extra prune -o locks/prune.txt
	@$(LOCK) --upgrade -c locks/prune.txt -o locks/core.txt
	@$(LOCK) --upgrade --extra eval -c locks/prune.txt -o locks/eval.txt
	@$(LOCK) --upgrade --extra train -c locks/prune.txt -o locks/train.txt
	@$(LOCK) --upgrade --extra test -c locks/prune.txt -o locks/test.txt
	@$(LOCK) --upgrade --extra test --extra dev -c locks/test.txt -o locks/dev.txt

images: ## build the containers' images, on the base images that .env or the Dockerfiles name (needs Docker)
	@docker compose --profile serve build

# All digests are asked for before any is written.
pin: ## write the digests of the base images into the Dockerfiles (needs Docker and an image registry)
	@set -e; edits=$$(mktemp); trap 'rm -f "$$edits"' EXIT; \
	for argument in $$(sed -n 's/^ARG \([A-Z]*_BASE_IMAGE=[^@]*\).*/\1/p' Dockerfile.*); do \
	  image=$${argument#*=}; \
	  digest=$$(docker buildx imagetools inspect "$$image" | sed -n 's/^Digest: *\(sha256:[0-9a-f]*\)$$/\1/p'); \
	  [ -n "$$digest" ] || { echo "make pin: no image registry answers for $$image; nothing is written" >&2; exit 1; }; \
	  echo "s|^ARG $$argument.*|ARG $$argument@$$digest|" >>"$$edits"; echo "$$image@$$digest"; \
	done; sed -i -f "$$edits" Dockerfile.*

toy: .venv-prune/.done ## train the toy again, into build/toy
	@.venv-prune/bin/python -m stages.toy --out build/toy

# The registry stays: there may be more in it than the demo made.
clean: ## remove the environments and build/
	rm -rf .venv .venv-prune .venv-train .venv-eval build
	@echo "the registry stays; to be rid of it too: rm -rf $(SLUICE_ROOT)/*"
