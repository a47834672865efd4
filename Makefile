# The developer's whole interface. Everything lives in .venv; only the package registries are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test chaos fuzz check bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" || (echo "fedkrso needs Python 3.10 to 3.12: make PYTHON=python3.11 ..."; exit 2)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# The main job: a broker, a coordinator and four homes fine-tune one 8-bit model.
demo: $(VENV)/installed
	$(BIN)/python -m examples.voice_intents.demo $(DEMO)

# Two at a time: many tests wait for brokers and processes. JOBS=0 for one after the other, with a debugger.
JOBS ?= 2
test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

# Faults that take minutes, or that need root: a leaking worker, a neighbour that takes the device's memory.
chaos: $(VENV)/installed
	$(BIN)/python -m pytest -m chaos tests

# Coverage-guided fuzzing of every decoder, FUZZ_SECONDS each (atheris: Linux on x86_64, Python 3.11 and 3.12); what breaks a promise is kept in build/fuzz.
FUZZ_SECONDS ?= 300
FUZZ_TARGETS ?= message records published_state update snapshot safetensors have state job node
fuzz: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	for target in $(FUZZ_TARGETS); do mkdir -p build/fuzz/$$target && $(BIN)/python tests/fuzz/run_atheris.py $$target build/fuzz/$$target/corpus \
	    -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=1024 -timeout=10 -max_len=8192 -artifact_prefix=build/fuzz/$$target/ || exit 1; done

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Memory and speed, on this machine; docs/benchmarks.md says how to read them.
bench: $(VENV)/installed
	$(BIN)/fedkrso bench aggregate
	$(BIN)/fedkrso bench memory

clean:
	rm -rf $(VENV) build *.egg-info
