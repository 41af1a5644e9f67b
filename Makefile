# make demo: the only set-up. make test: the tests. make check: style, types, the package as it is installed, attacks.
# make aot: Triton kernels compile. make test-real: on pulled models.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A GPU machine takes any torch; elsewhere the pinned CPU build keeps the set-up light.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "-c constraints-cpu.txt")

.PHONY: demo install dev test test-real check aot clean

demo: install
	$(BIN)/minimemo pull
	$(BIN)/minimemo build examples/lighthouse.txt
	$(BIN)/minimemo ask examples/lighthouse.memo "When was the light lit for the first time?"
	$(BIN)/minimemo ask examples/lighthouse.memo "灯塔是哪一年第一次点亮的？"

install: $(VENV)/installed
$(VENV)/installed: pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e .
	@touch $@

dev: $(VENV)/installed-dev
$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e '.[test,check]'
	@touch $@

test: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real and not cluster and not package" -n 2 --dist worksteal --durations=8

test-real: dev
	$(BIN)/python -m pytest -m "real or cluster" --durations=0 -rA

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m package -n 2 --dist worksteal --durations=8 tests/test_package.py tests/test_attack.py

# Every Triton kernel compiled for eight chips, or those in CHIPS, no GPU needed: no spills, shared memory within the
# chip's limit.
aot: dev
	$(BIN)/python -m tools.aot $(addprefix --chip ,$(CHIPS))

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache examples/*.memo
