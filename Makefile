# Every target sets up what it needs: a Python >= 3.11 with pip is enough to begin with.
PYTHON ?= python3
UV_VERSION := 0.13.9
BUILD := $(shell nvidia-smi --list-gpus >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
UV := .cache/uv/bin/uv
READY := .venv/.ready-$(BUILD)
PACKAGES := tuneserve benchmarks finetune quantize server

export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test image-test image-test-gpu check bench observe soak fuzz protos settings lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything pinned

demo: $(READY) ## labelled text -> fine-tuned, quantized models -> gRPC answers
	$(BIN)/tuneserve demo

test: $(READY) ## every test, on the real vLLM engine where it matters
	$(BIN)/pytest --numprocesses 2 --no-loadscope-reorder

image-test: $(READY) ## build both images without Docker, train in one and serve from the other; as root on Debian
	$(BIN)/pytest --override-ini faulthandler_timeout=3600 tests/image/build_and_serve.py -k "not gpu"

image-test-gpu: $(READY) ## build the image that serves on GPUs, with 65 GB of free disk
	$(BIN)/pytest --override-ini faulthandler_timeout=3600 tests/image/build_and_serve.py -k gpu

check: $(READY) .cache/types ## ruff, strict types, buf lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.cache/types $(BIN)/mypy --cache-dir .cache/mypy $(addprefix -p ,tuneserve)
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against baseline.binpb

soak: $(READY) ## ten minutes of mixed load on the real engines, and a thousand cancelled calls
	TUNESERVE_SOAK_SECONDS=600 TUNESERVE_CANCELS=1000 $(BIN)/pytest -s tests/engine/test_soak.py tests/server/promises

fuzz: $(READY) ## ten thousand messages and garbage at every call of the API
	TUNESERVE_FUZZ_EXAMPLES=10000 $(BIN)/pytest tests/server/promises/test_fuzz.py tests/server/promises/test_garbage.py

observe: $(READY) ## an engine dies, texts turn negative: a real Prometheus and Alertmanager tell a webhook of each, twice
	$(BIN)/pytest -s tests/helm/test_observe.py

bench: $(READY) ## our server beside plain vLLM and `vllm serve`, on the demo's models; REPORT=1 writes a file
	@test -d demo/chat && test -d demo/sentiment || { echo "make bench measures the demo's models: run make demo first"; exit 2; }
	$(BIN)/python -m tuneserve.benchmarks.serving.cost demo/sentiment demo/chat $(if $(REPORT),--report)

protos: $(READY) ## regenerate the stubs from the .proto files
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos --grpc_python_out=protos \
		protos/tuneserve/v1/*.proto protos/tuneserve/oip/*.proto

settings: $(READY) ## regenerate docs/settings.md and docs/schemas from the settings' models
	$(BIN)/python -m tuneserve.schema docs

lock: $(UV) ## choose and pin package versions again
	requirements/lock.sh

clean: ## remove .venv and caches; downloaded samples too
	rm -rf .venv .cache build *.egg-info

# pip's find-links is passed on because uv does not read it; without one, PyTorch's own index has the build.
$(READY): requirements/$(BUILD).txt pyproject.toml | $(UV)
	@echo "== setting up .venv: the $(BUILD) build, pinned in requirements/$(BUILD).txt"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@UV_FIND_LINKS="$$PIP_FIND_LINKS" $(UV) pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode \
		$$(test -n "$$PIP_FIND_LINKS" || echo --torch-backend=$(if $(filter gpu,$(BUILD)),auto,cpu)) \
		--requirement requirements/$(BUILD).txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@rm -f .venv/.ready-* && touch $@

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "== fetching uv $(UV_VERSION)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .cache/uv uv==$(UV_VERSION)

# The import namespace as one tree, for tools that do not follow the package mapping of pyproject.toml.
.cache/types: Makefile tuneserve
	@rm -rf $@ && mkdir -p $@/tuneserve
	@for f in tuneserve/*; do ln -s ../../../$$f $@/tuneserve/; done
	@for p in benchmarks finetune quantize server; do ln -s ../../../$$p $@/tuneserve/$$p; done
	@for p in v1 oip; do ln -s ../../../protos/tuneserve/$$p $@/tuneserve/$$p; done
