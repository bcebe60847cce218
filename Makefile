# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Any Python 3.11 or 3.12; the first found is taken.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(VENV)/uv/bin/uv
STAMP  := $(VENV)/.installed
# Threads of the tests' torch: the workers share the machine.
export OMP_NUM_THREADS ?= 1
# Processes that share the tests which need no cluster: one for each core, at most four, because each holds torch and
# Megatron (1.5 GB). Each begins with files of its own, and takes from the others once it is done. 0: none but this one.
# nproc counts OMP_NUM_THREADS instead of cores where that is set.
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2); echo $$(( n < 4 ? n : 4 )))
PYTEST := $(BIN)/python -m pytest --durations=20
# Where the tests are that need a cluster: to look through all folders imports torch, and takes most of a minute.
CLUSTER_TESTS := tests/benchmarks tests/cluster_tests tests/packaging

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(STAMP) ## Install everything into .venv (uv and the requirements, each by its hash)

$(UV): requirements/uv.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: \
		--requirement requirements/uv.txt
	@touch $@

$(STAMP): $(UV) pyproject.toml requirements/dev.txt
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: $(STAMP) ## The main job, without a cluster: compress a small teacher on real text
	@$(BIN)/python examples/demo/corpus.py
	@$(BIN)/compression run examples/demo.yaml --workdir out/demo

.PHONY: demo-teacher
demo-teacher: $(STAMP) ## Train the demo's teacher anew (half an hour on 2 cores); TEACHER_ARGS="--steps 20 --output DIR"
	@$(BIN)/python examples/demo/corpus.py
	@$(BIN)/python examples/demo/teacher.py $(TEACHER_ARGS)

.PHONY: test
test: lint types ## Lint, types, every test: what CI runs
	@# All at once, because the tests on a cluster mostly wait. Those that compute stand back: NICE.
	@$(MAKE) --no-print-directory --jobs=3 --keep-going NICE="nice -n 10" test-unit test-cluster

.PHONY: test-unit
test-unit: $(STAMP) ## The quick half: the tests that need no cluster; TESTS=tests/operator narrows them
	$(NICE) $(PYTEST) --numprocesses=$(WORKERS) --dist=worksteal -m "not cluster and not slow" $(TESTS)

.PHONY: test-cluster
test-cluster: test-shared-cluster test-own-cluster ## The tests on real clusters, which they bring up themselves (pods: root, Debian)

.PHONY: test-shared-cluster
test-shared-cluster: $(STAMP) ## Of these the many that share one cluster; TESTS=tests/cluster_tests/test_runs.py narrows them
	$(PYTEST) -m "cluster and not own_cluster" $(or $(TESTS),$(CLUSTER_TESTS))

.PHONY: test-own-cluster
test-own-cluster: $(STAMP) ## Of these the few that have clusters of their own, or need the images alone
	$(PYTEST) -m "cluster and own_cluster" $(or $(TESTS),$(CLUSTER_TESTS))

.PHONY: test-slow
test-slow: $(STAMP) ## What takes too long for every change, and is in no other: a claim of the recipe at its full size
	$(PYTEST) -m slow $(or $(TESTS),tests/benchmarks)

.PHONY: gpu-wheels
gpu-wheels: $(UV) ## Download what a machine with a GPU, Python 3.12 and torch, but no network, lacks: 40 MB in .whl/
	$(VENV)/uv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary=:all: --implementation cp --python-version 3.12 --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest .whl --requirement requirements/gpu.txt

.PHONY: gpu-check
gpu-check: ## What only a GPU can show, in six minutes, on such a machine: OUT=folder (default out/gpu), GPU_ARGS="--part step"
	@test ! -d .whl || python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade \
		--target out/gpu-site .whl/*.whl
	@PYTHONPATH=out/gpu-site python3 benchmarks/gpu_check.py --output $(or $(OUT),out/gpu) $(GPU_ARGS)

.PHONY: lint
lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(STAMP) ## pyright: strict on operator/, basic on the rest
	$(BIN)/pyright

.PHONY: format
format: $(STAMP) ## Let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: crds
crds: $(STAMP) ## Write crds/ from the models, and what the chart has of them and of its values
	$(BIN)/python -m compression_operator.api.crd
	cp crds/*.yaml charts/compression-operator/files/
	$(BIN)/python -m compression_operator.api.admission
	$(BIN)/python charts/document.py

.PHONY: lock
lock: $(UV) ## Pin requirements/*.in anew (hashes, no index addresses)
	@for use in operator pipeline dev uv; do \
		$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			--no-header --no-annotate --output-file requirements/$$use.txt requirements/$$use.in || exit 1; done
	@$(UV) pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --no-deps --constraints requirements/dev.txt \
		--output-file requirements/gpu.txt requirements/gpu.in

.PHONY: clean
clean: ## Remove what the demo made
	rm -rf out

.PHONY: cluster
cluster: ## A real Kubernetes cluster on this machine (Go builds it once, into the cache); eval "$(make -s cluster)"
	@$(PYTHON) -m tests.cluster up $(if $(STATE),--state $(STATE))

.PHONY: cluster-import
cluster-import: ## Import image archives into that cluster, which has no registry; FILES="a.tar b.tar"
	@$(PYTHON) -m tests.cluster import $(FILES) $(if $(STATE),--state $(STATE))

.PHONY: cluster-down
cluster-down: ## Take that cluster down, without a trace
	@$(PYTHON) -m tests.cluster down $(if $(STATE),--state $(STATE))
