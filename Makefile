# Everything a developer or a user of the clone does, one line each; the work is in the scripts.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Caches and tags, for the targets that call cargo themselves.
ENVIRONMENT := source deploy/environment.sh;
CRD := charts/penstock/crd/cdcpipelines.yaml

##@ Use

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: ## Show a pipeline on a real cluster, from nothing; CLUSTER=current REGISTRY=… uses yours
	@deploy/demo/run

.PHONY: demo-down
demo-down: ## Remove all that `make demo` made
	@deploy/demo/down

.PHONY: images
images: ## Build the images of operator and worker, and print their archives
	@deploy/local/cluster setup
	@deploy/keep-dates
	@$(ENVIRONMENT) nice cargo build --locked --release -p penstock-operator -p penstock-worker
	@$(ENVIRONMENT) deploy/local/cluster build-images operator worker

##@ Test

.PHONY: test
test: ## Set up what is needed, run all tests, print a summary
	@deploy/test/run

.PHONY: test-unit
test-unit: ## Run the tests that need no database and no cluster
	@deploy/test/run unit

.PHONY: test-integration
test-integration: ## Run the tests on real PostgreSQL servers
	@deploy/test/run integration

.PHONY: test-e2e
test-e2e: ## Run the tests on a real cluster
	@deploy/test/run e2e

.PHONY: torture
torture: ## Inflict FAULTS faults (default: 2000, half of them kills, some 50 minutes) on a pipeline; SEED=… repeats
	@deploy/test/torture $(or $(FAULTS),2000) $(SEED)

.PHONY: fuzz
fuzz: ## Throw bytes at decoder, checkpoint file and HTTP API for FUZZ_SECONDS each (default: 300); SEED=… repeats
	@$(ENVIRONMENT) nice env PENSTOCK_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),300) $(if $(SEED),PENSTOCK_FUZZ_SEED=$(SEED)) \
	  cargo test --locked --quiet -p penstock-worker --test fuzz -- --nocapture --test-threads=1

.PHONY: scale
scale: ## Measure large sources: RSS over CHANGES, a transaction of MEGABYTES, a table among RELATIONS, values of VALUE MiB
	@$(ENVIRONMENT) nice env PENSTOCK_SCALE_CHANGES=$(or $(CHANGES),1000000) PENSTOCK_SCALE_MEGABYTES=$(or $(MEGABYTES),1024) \
	  PENSTOCK_SCALE_RELATIONS=$(or $(RELATIONS),20000) \
	  cargo test --locked --quiet -p penstock-worker --test scale -- --nocapture --test-threads=1
	@$(ENVIRONMENT) nice env PENSTOCK_SCALE_VALUE_MIB=$(or $(VALUE),256) \
	  cargo test --locked --quiet -p penstock-worker --test types -- --nocapture large

.PHONY: lint
lint: ## Check format, lints, scripts, documents and chart
	@deploy/lint/run

##@ Develop

.PHONY: fmt
fmt: ## Format the Rust code
	@cargo fmt --all

.PHONY: crds
crds: ## Generate the CustomResourceDefinition from the Rust types, and the chart's golden files
	@$(ENVIRONMENT) cargo run --quiet --locked -p penstock-crds >$(CRD).new
	@mv $(CRD).new $(CRD)
	@UPDATE=1 deploy/lint/chart

.PHONY: cluster-up
cluster-up: ## Start a local cluster called NAME (default: dev)
	@deploy/local/cluster setup
	@deploy/local/cluster up $(or $(NAME),dev)

.PHONY: cluster-down
cluster-down: ## Remove the local cluster called NAME (default: dev)
	@deploy/local/cluster down $(or $(NAME),dev)

.PHONY: clean
clean: ## Remove what cargo has built, and the logs of test runs
	@$(ENVIRONMENT) cargo clean && rm -rf "$$PENSTOCK_CACHE/logs"
