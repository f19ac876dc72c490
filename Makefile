.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
INSTALLED := $(VENV)/.installed

.PHONY: help install run demo test test-cuda check lint types format protos protos-check bench bench-training bench-loop soak perf-analyzer starter clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create the environment with everything in it

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[all]' --group dev
	touch $@

run: $(INSTALLED) ## install, then start the suite on http://127.0.0.1:8000
	$(BIN)/aimass up

demo: $(INSTALLED) ## watch a weak model become better by its users, without a touch (minutes); KILLS=10 kills too
	$(BIN)/aimass demo $(if $(KILLS),--kills $(KILLS))

test: $(INSTALLED) ## run all tests
	@# Hundreds of processes import the same modules: compiled once, whatever the machine has it otherwise. Threads that
	@# wait for each other do not spin: two tests at once share the processors.
	PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

test-cuda: $(INSTALLED) ## the same tests, with the graphs on an NVIDIA GPU
	TEST_DEVICE=cuda $(BIN)/python -m pytest

check: lint types test ## what CI runs

lint: $(INSTALLED) ## style, import contracts, protos; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

format: $(INSTALLED) ## mend what a formatter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

PROTOC := $(BIN)/python -m grpc_tools.protoc --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc

protos: $(INSTALLED) ## generate the Python code of the contracts
	$(PROTOC) -I protos -I protos/open_inference --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
		$$(cd protos && find aimass -name '*.proto')
	$(PROTOC) -I protos/open_inference --python_out=aimass/open_inference --grpc_python_out=aimass/open_inference \
		--mypy_out=aimass/open_inference --mypy_grpc_out=aimass/open_inference grpc_service.proto model_config.proto
	@# Triton's descriptor names have no folder, so protoc writes imports from the top level.
	find aimass \( -name '*_pb2*.py' -o -name '*_pb2*.pyi' \) -exec sed -i.orig -E \
		's/^import (grpc_service_pb2|model_config_pb2)/from aimass.open_inference import \1/' {} +
	find aimass -name '*.orig' -delete

protos-check: protos ## fail where the committed code is not what the contracts generate
	test -z "$$(git status --porcelain -- 'aimass/*_pb2*')" || (git status --short -- 'aimass/*_pb2*' && false)

bench: $(INSTALLED) ## speed beside the bare loop, batching, cost of watching, memory, accuracy (half an hour)
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.batching
	$(BIN)/python -m benchmarks.model_bound
	$(BIN)/python -m benchmarks.streams
	$(BIN)/python -m benchmarks.observability
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.accuracy

bench-training: $(INSTALLED) ## the loop beside a bare one, cost of watching, workers that never wait, 20 kills (two hours)
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.progress
	$(BIN)/python -m benchmarks.local_steps
	$(BIN)/python -m benchmarks.kills --kills 20 --epochs 10

bench-loop: $(INSTALLED) ## the gate's honesty, poison, drift, intervals, cost of capturing and retraining, label to answer, deletion (two hours)
	$(BIN)/python -m benchmarks.honesty
	$(BIN)/python -m benchmarks.intervals
	$(BIN)/python -m benchmarks.drift
	$(BIN)/python -m benchmarks.poison
	$(BIN)/python -m benchmarks.capturing
	$(BIN)/python -m benchmarks.retraining
	$(BIN)/python -m benchmarks.turnaround
	$(BIN)/python -m benchmarks.deletion

soak: $(INSTALLED) ## a million requests, swaps under load: is memory flat, is anything lost (half an hour)
	$(BIN)/python -m benchmarks.swaps
	$(BIN)/python -m benchmarks.soak

PERF := $(VENV)/perf

perf-analyzer: $(PERF)/.installed ## install the stock load generator that the tests then run (needs libb64-0d)

$(PERF)/.installed: $(INSTALLED)
	$(BIN)/python -m pip download --quiet --no-deps --dest $(PERF) tritonclient==2.48.0 nvidia-cuda-runtime-cu12==12.9.79
	for wheel in $(PERF)/*.whl; do $(BIN)/python -m zipfile -e $$wheel $(PERF); done
	ln -sf tritonclient-2.48.0.data/data/bin/perf_analyzer nvidia/cuda_runtime/lib/libcudart.so.12 $(PERF)
	chmod +x $(PERF)/perf_analyzer
	rm $(PERF)/*.whl
	touch $@

STARTER_RUN := build/runs/starter

starter: $(STARTER_RUN)/outcome.json ## train the starter model anew (an hour on two cores) and put it into the package
	cp $(addprefix $(STARTER_RUN)/,model.onnx model.json) aimass/starter/cifar10/1
	cp $(addprefix $(STARTER_RUN)/,run.json outcome.json progress.jsonl dataset.json learnt.npy weights.pt) aimass/starter/run
	cp $(addprefix $(STARTER_RUN)/,card.json card.html evaluation.json confusion.csv) aimass/starter/run

$(STARTER_RUN)/outcome.json: | $(INSTALLED) # the last file; `make starter` goes on with an interrupted run
	$(BIN)/aimass data fetch cifar10
	TRAINER_RUNS=$(dir $(STARTER_RUN)) TRAINER_DATABASE=sqlite:///$(dir $(STARTER_RUN))trainer.db \
		$(BIN)/aimass train fast --run-id starter

clean: ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
