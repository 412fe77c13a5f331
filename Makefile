# The same few commands for people and for CI. Each starts from nothing and is quick the second time.
PYTHON ?= python3
# Many tests wait for processes: three at a time keep two cores busy. A file's tests stay together.
SIDE_BY_SIDE = --numprocesses 3 --dist loadfile
# Production's.
PARTITIONS = $(shell sed -n 's/.*TILES_PARTITIONS=//p' deploy/kubernetes/overlays/production/kustomization.yaml)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-full test-node test-careamics contract alerts topology simulation bench bench-quick bench-stages bench-publishing chaos chaos-quick soak scale test-brokers lint requirements clean

help: ## List these commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run the demo with a RabbitMQ of its own; ARGS="--help" lists its options.
	@deploy/scripts/setup-python .venv demo $(PYTHON)
	@$(if $(findstring --broker,$(ARGS)),,deploy/scripts/setup-rabbitmq)
	@.venv/bin/python -m consumer.demo $(ARGS)

test: ## Run all tests, and on Python 3.13, where there is one, those that need no broker.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq || [ -z "$${CI:-}" ]
	@deploy/scripts/setup-prometheus || [ -z "$${CI:-}" ]
	.venv/bin/python -m pytest $(SIDE_BY_SIDE)
	@deploy/scripts/test-on 3.13 $(SIDE_BY_SIDE) tests/unit

test-full: export FULL = 1
test-full: test ## Run all tests at their full size.

simulation: ## Run 10,000 random histories; takes two minutes.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	FULL=1 .venv/bin/python -m pytest tests/simulation/test_histories.py -k random_histories

test-node: ## Check the contract with Node, and a producer in JavaScript.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@deploy/scripts/setup-node tests/node
	TEST_NODE=1 .venv/bin/python -m pytest tests/node

test-careamics: ## Check the write strategy with CAREamics itself; installs 6 GB.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@deploy/scripts/setup-careamics $(PYTHON)
	TEST_CAREAMICS=1 .venv/bin/python -m pytest tests/careamics

contract: ## Write the documents of the wire contract anew.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	.venv/bin/consumer schema asyncapi > deploy/contract/asyncapi.json
	.venv/bin/consumer schema json > deploy/contract/tiles.schema.json

alerts: ## Write the dashboard and the custom resource of the alerts anew.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	.venv/bin/python deploy/scripts/dashboard
	deploy/scripts/prometheus-rule

topology: ## Write the definitions for RabbitMQ anew.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@mkdir -p deploy/rabbitmq
	.venv/bin/consumer topology show --definitions --partitions $(PARTITIONS) > deploy/rabbitmq/definitions.json

bench: ## Measure throughput against other writers; takes half an hour. ARGS="--help" lists options.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@PYTHONPATH=.:tests .venv/bin/python -m benchmarks $(ARGS)

bench-quick: ## The same in short.
	@$(MAKE) --no-print-directory bench ARGS="--quick --repeats 2 $(ARGS)"

bench-stages: ## Measure each stage of a tile's way alone.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@PYTHONPATH=.:tests .venv/bin/python -m benchmarks.stages $(ARGS)

chaos: ## Let faults happen by the hundred; takes about an hour. ARGS="--scenario sigkill --seed 7".
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@PYTHONPATH=.:tests .venv/bin/python -m chaos $(ARGS)

chaos-quick: ## The same in short; takes six minutes.
	@$(MAKE) --no-print-directory chaos ARGS="--quick $(ARGS)"

soak: ## A random mix of faults for an hour; ARGS="--minutes 10" for less.
	@$(MAKE) --no-print-directory chaos ARGS="--scenario soak $(ARGS)"

scale: ## Many replicas on many partitions, on one broker and on three; ARGS="--quick" in short.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@PYTHONPATH=.:tests .venv/bin/python -m scale $(ARGS)

test-brokers: ## Test on RabbitMQ 4.0 and 4.3; takes root. SUITES="trixie sid", QUICK=1 for less.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@SIDE_BY_SIDE="$(SIDE_BY_SIDE)" deploy/scripts/test-brokers $(or $(SUITES),trixie sid)

lint: ## Check style and types.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

bench-publishing: ## Measure the publisher beside a bare pika loop.
	@deploy/scripts/setup-python .venv dev $(PYTHON)
	@deploy/scripts/setup-rabbitmq
	@PYTHONPATH=.:tests .venv/bin/python -m benchmarks.publishing $(ARGS)

requirements: ## Pin anew what the images install.
	deploy/scripts/compile-requirements $(PYTHON)

clean: ## Remove what these commands made, but no results.
	rm -rf .venv .venv-3.13 .venv-careamics .venv-careamics-older .rabbitmq .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find consumer tests -name __pycache__ -prune -exec rm -rf {} +
