# Every target does its own set-up: Python and make are all that it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOC_VENV := .venv-protoc
PIP_VENV := .venv-pip
PROTO := tdreplay/v1/replay_buffer.proto

# Of the images. The wheels come from the host's pip, so the base image has the host's version of Python.
WHEELS := docker/wheels
TORCH ?= cpu
TORCH_INDEX ?=
BASE_IMAGE ?= python:$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-slim
COMPOSE := BASE_IMAGE=$(BASE_IMAGE) TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) docker compose --file docker/compose.yaml

.DEFAULT_GOAL := help
.PHONY: help install browser docker-engine demo floors matrix bench bench-quick bench-durability bench-contention bench-scale bench-sharding bench-samplers bench-sampling bench-trajectories bench-overhead bench-ray compliance-shards crash soak docker-wheels docker-build docker-test docker-demo test test-long check lint types protos protos-check format clean

help: ## Show what there is to make.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(VENV)/.installed ## Make the virtual environment with pinned versions.

demo: install ## Train CartPole through the service: a server, two actors, a learner.
	$(BIN)/python -m examples.cartpole $(ARGS)

bench: install ## Measure tdreplay and its peers on the same work (builds the peers' environments once; under 10 minutes after that).
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: install ## The same without the peers that need environments of their own: under a minute.
	$(BIN)/python -m benchmarks --quick $(ARGS)

bench-durability: install ## Measure what each level of durability costs: two minutes.
	$(BIN)/python -m benchmarks.durability $(ARGS)

bench-contention: install ## Measure what learners and writers get while they share one server: two minutes.
	$(BIN)/python -m benchmarks.contention $(ARGS)

bench-crowd: install ## Let 1,000 writers, 16 learners and 200 looks a second at one server, and measure what each gets: two minutes.
	$(BIN)/python -m benchmarks.crowd $(ARGS)

bench-scale: install ## Measure what one shard carries, and work out what up to 1,000 need: the tables of docs/scale.md, two minutes.
	$(BIN)/python -m benchmarks.shards_plan $(ARGS)

bench-sharding: install ## Measure streams over 1, 2 and 4 shards against that of one server: two minutes.
	$(BIN)/python -m benchmarks.sharding $(ARGS)

bench-samplers: install ## Measure what a draw, an update and an insert cost each of the server's samplers: a minute.
	$(BIN)/python -m benchmarks.samplers $(ARGS)

bench-sampling: install ## Measure samplers, priorities, queues and epochs; ARGS="--against DIR" adds another checkout's uniform stream: under 10 minutes.
	$(BIN)/python -m benchmarks.sampling $(ARGS)

bench-trajectories: install ## Measure tables of steps against rows of transitions, Reverb and TorchRL: under 10 minutes.
	$(BIN)/python -m benchmarks.trajectories $(ARGS)

bench-ray: install ## Measure shards on Ray against RLlib's replay buffers and TorchRL's on the same Ray (builds the peers' environment once): ten minutes.
	$(BIN)/python -m benchmarks.ray_peers $(ARGS)

bench-overhead: install ## Measure what metrics, TLS and tokens cost a small stream and single inserts, in pairs that take turns: two minutes.
	$(BIN)/python -m benchmarks.overhead $(ARGS)

compliance-shards: install ## Run the behaviour suite of buffers over 1, 2 and 5 shards, all of it: ten minutes.
	TDREPLAY_COMPLIANCE_SHARDS="1 2 5" TDREPLAY_LONG=1 $(BIN)/python -m pytest -p no:cacheprovider -q tests/compliance/buffers -k sharded $(ARGS)

SECONDS ?= 1800
soak: install ## Mixed traffic with clients that come and go: does anything grow? SECONDS= says how long, ARGS="--restart-every 300" restarts the server: half an hour.
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS) $(ARGS)

$(PIP_VENV)/.installed:
	$(PYTHON) -m venv $(PIP_VENV)
	touch $@

# A stamp for each kind of torch: one kind of wheels does not stand in for the other.
$(WHEELS)/.$(TORCH): pyproject.toml constraints.txt | $(PIP_VENV)/.installed
	rm -f $(WHEELS)/*.whl $(WHEELS)/.c*
	$(PIP_VENV)/bin/python -m pip wheel --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --wheel-dir $(WHEELS) \
		torch==$$(sed -n 's/^torch==//p' constraints.txt)$(if $(filter cpu,$(TORCH)),+cpu) hatchling editables '.[server,cartpole]'
	rm $(WHEELS)/tdreplay-*.whl
	touch $@

docker-wheels: $(WHEELS)/.$(TORCH) ## Fetch what the images install, so that they are built without a network.

docker-engine:
	@docker version >/dev/null || { echo "no Docker engine answers: these targets need one, and docker compose 2" >&2; exit 1; }

docker-build: docker-engine docker-wheels ## Build the images of the server, the client and the demo.
	$(COMPOSE) --profile client build

# First the stacks that mostly wait, two at a time; then those that are measured, each alone.
DOCKER_PYTEST = TDREPLAY_DOCKER=1 BASE_IMAGE=$(BASE_IMAGE) TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m pytest tests/docker -rP $(ARGS)
docker-test: docker-engine ## Test the images as a stack, with real faults: five minutes with the build.
	$(MAKE) --jobs 2 install docker-build
	$(DOCKER_PYTEST) -m beside -n 2 --dist loadfile
	$(DOCKER_PYTEST) -m "not beside"

docker-demo: docker-build ## Train CartPole on the stack: a server, four actors, a learner.
	$(COMPOSE) --project-name tdreplay-demo up --scale actor=4 --exit-code-from learner; status=$$?; \
		$(COMPOSE) --project-name tdreplay-demo down --volumes; exit $$status

crash: install ## Kill servers and clients two hundred times, and let a server stand still for a minute: the long form of tests/crash, a quarter of an hour.
	TDREPLAY_KILLS=200 $(BIN)/python -m pytest tests/crash -s $(ARGS)

fuzz: install ## Send 200,000 changed blocks, 200,000 random requests and 100,000 HTTP/2 frames to a live server: a quarter of an hour.
	TDREPLAY_FUZZ=1 $(BIN)/python -m pytest tests/fuzz -s --timeout 3600 $(ARGS)

hostile: install ## Hold each flood of unknown peers for seconds, and compare a learner beside it with the learner alone: two minutes.
	TDREPLAY_FLOODS=1 $(BIN)/python -m pytest tests/floods -s $(ARGS)

# A browser is no Python package. Where it cannot be installed, the tests that need it fail, and say so, unless TDREPLAY_BROWSER=none leaves them out.
browser: ## Install chromium, which the tests of the dashboard drive: on Debian, as root.
	@command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver; } || \
		echo "There is no chromedriver, and it cannot be installed here: the tests of the dashboard in a browser will fail, or set TDREPLAY_BROWSER=none" >&2

# Three workers for two cores, because many tests wait; with more, those that have deadlines wait for a core. What pytest makes of the test files is
# kept in __pycache__, whatever the environment says. The tests on Ray run by themselves: Ray gives its own processes half a minute to start.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
test: install browser ## Run the whole test suite: some twenty minutes on two cores. ARGS are for all but the tests on Ray.
	$(PYTEST) -n 3 --dist worksteal --ignore tests/on_ray $(ARGS)
	$(PYTEST) tests/on_ray

test-long: install browser ## The same, with every combination of the large matrices, and long runs on Ray: an hour.
	TDREPLAY_LONG=1 $(PYTEST) -n 3 --dist worksteal --ignore tests/on_ray $(ARGS)
	TDREPLAY_LONG=1 $(PYTEST) tests/on_ray

floors: install ## Test the client alone, with the oldest and the newest versions of what it needs: two minutes.
	$(BIN)/python tests/matrix this:oldest:client this:newest:client $(ARGS)

matrix: install ## Test client and server with the oldest and the newest Python and versions: a quarter of an hour. ARGS=--help says how to choose.
	$(BIN)/python tests/matrix $(ARGS)

check: lint types protos-check test floors ## What CI runs, with docker-test after it.

lint: install ## Check style, which module imports which, and the proto's rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos

types: install ## Check types.
	$(BIN)/mypy

format: install ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(PROTOC_VENV)/.installed: protos/requirements.txt
	$(PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

# The generator is pinned, and old: its code runs on the protobuf and grpcio versions that pyproject.toml allows.
define generate
	cd protos && PATH="$(CURDIR)/$(PROTOC_VENV)/bin:$$PATH" python -m grpc_tools.protoc -I . --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) $(PROTO)
endef

protos: $(PROTOC_VENV)/.installed ## Generate the code of the proto.
	$(call generate,.)

protos-check: $(PROTOC_VENV)/.installed ## Fail where the committed code is not what the proto generates.
	rm -rf build/protos && mkdir -p build/protos
	$(call generate,../build/protos)
	for file in build/protos/tdreplay/v1/*; do diff -u "protos/tdreplay/v1/$${file##*/}" "$$file" || exit 1; done

clean: ## Remove what the other targets made.
	rm -rf $(VENV) $(PROTOC_VENV) $(PIP_VENV) .venv-matrix build .mypy_cache .ruff_cache .pytest_cache .hypothesis learning_curve.png
