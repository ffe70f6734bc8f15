# Two commands do everything on a machine with Python 3.10+ and make:
#   make run    a virtual environment, the package, and the offline benchmark on what comes with it
#   make test   the same environment, `make lint` and every test; with an NVIDIA driver, the GPU's tests may not be skipped
#   make lint   ruff, clang-format and mypy; `make format` formats
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# The CuPy wheel has to fit the driver: the driver says up to which CUDA it goes.
CUDA_MAJOR := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\).*/\1/p' | head -n 1)
ifeq ($(CUDA_MAJOR),)
CUDA_EXTRA :=
else ifeq ($(CUDA_MAJOR),12)
CUDA_EXTRA := cuda12
else
CUDA_EXTRA := cuda13
endif

# The tests of backend `torch` and of the fine-tuning tools need PyTorch, a large download: `make test WITH_TORCH=1` has them
# run.
TORCH := torch==2.13.0
# And those of classification on Ray need Ray, another: `make test WITH_RAY=1`.
# Those that import what Brevitas exports need it and PyTorch: `make test WITH_BREVITAS=1`. It holds setuptools below 81.
BREVITAS := brevitas==0.13.4 onnxoptimizer==0.4.2

# Images of the default model's own data set, rendered on first use.
SHAPES := $(VENV)/shapes-200

ARGS ?=
comma := ,

CUDA_SOURCES = $(shell find int4core pipeline tests tools -name '*.cu' -o -name '*.cuh' -o -name '*.hpp' -o -name '*.h')

.PHONY: run test lint format check-all docs check-python clean

run: $(VENV)/.run $(SHAPES)/map.txt
	$(BIN)/python -m pipeline.offline --images $(SHAPES) $(ARGS)
	@echo 'The same images as a table: $(BIN)/int4-classify $(SHAPES) --out shapes.csv'

$(SHAPES)/map.txt: | $(VENV)/.run
	$(BIN)/python -m tools.shapes make --out $(SHAPES) --count 200

# With a driver, a test that needs a GPU fails where it cannot have one.
WITH_GPU := $(if $(CUDA_EXTRA),INT4CORE_REQUIRE_GPU=$${INT4CORE_REQUIRE_GPU:-1})

# Without one, which they would share, they run side by side (see tests/conftest.py).
SIDE_BY_SIDE := $(if $(CUDA_EXTRA),,-n logical --maxprocesses 4 --dist loadgroup)

# Tests start the application hundreds of times: it is compiled once, also where the environment forbids keeping that.
test: lint $(if $(WITH_TORCH),$(VENV)/.torch) $(if $(WITH_RAY),$(VENV)/.ray) $(if $(WITH_BREVITAS),$(VENV)/.brevitas)
	$(WITH_GPU) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CUDA_SOURCES)
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CUDA_SOURCES)

$(VENV)/.run: pyproject.toml | check-python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.$(if $(CUDA_EXTRA),[$(CUDA_EXTRA)])'
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(BIN)/pip install --quiet --editable '.[$(if $(CUDA_EXTRA),$(CUDA_EXTRA)$(comma))test]'
	touch $@

$(VENV)/.torch: $(VENV)/.test
	$(BIN)/pip install --quiet '$(TORCH)' matplotlib --editable '.[$(if $(CUDA_EXTRA),$(CUDA_EXTRA)$(comma))test,torch]'
	touch $@

$(VENV)/.brevitas: $(VENV)/.torch
	$(BIN)/pip install --quiet $(BREVITAS)
	touch $@

$(VENV)/.ray: $(VENV)/.test
	$(BIN)/pip install --quiet --editable '.[$(if $(CUDA_EXTRA),$(CUDA_EXTRA)$(comma))test,ray]'
	touch $@

# The tests that take long: every configuration of every kernel compiled for every chip, and its machine code read. Then
# those that draw their examples, with others each time.
check-all: $(VENV)/.test
	@echo 'About a quarter of an hour on two cores without a GPU. What is not tested, and what that would need, is listed at the end.'
	INT4CORE_TEST_ALL=1 $(WITH_GPU) $(BIN)/python -m pytest tests/kernels --timeout=3600 --durations=10 $(ARGS)
	INT4CORE_TEST_ALL=1 $(WITH_GPU) $(BIN)/python -m pytest -m hypothesis $(ARGS)

# The pages of the engine's public names; docs/api.md says which are kept.
docs: $(VENV)/.docs
	$(BIN)/python -m pdoc --output-directory build/docs int4core int4core.preprocess int4core.quantize int4core.scores int4core.options \
	  int4core.tuning.autoconfig

$(VENV)/.docs: pyproject.toml $(VENV)/.run
	$(BIN)/pip install --quiet --editable '.[$(if $(CUDA_EXTRA),$(CUDA_EXTRA)$(comma))docs]'
	touch $@

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else \
	  "Python 3.10 to 3.13 is needed, and this is %d.%d: make PYTHON=/path/to/python3.12" % sys.version_info[:2])'

clean:
	rm -rf $(VENV) build dist *.egg-info
