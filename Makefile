# Needs GNU make and Python 3.11 or newer, nothing else. `make help` lists what there is.

PYTHON ?= python3
LOCAL := .local
BIN := .venv/bin
# Exists, and is newer than the lock, when everything is installed.
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

MAKEFLAGS += --no-print-directory
# Where it is set, each of the many processes of the tests compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help install demo up deploy minio test test-oldest attack stores bench reference screenshots check audit \
  format lock clean distclean require-stopped

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## create .venv with exactly the locked versions

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This needs Python 3.11 or newer, and '$(PYTHON)' is not: $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Install one and name it: make install PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into .venv, once: half a minute, on a busy machine or a slow network minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# Where MinIO will be needed, it is built meanwhile. Who needs it waits for that.
	@$(if $(filter demo up minio test test-oldest,$(MAKECMDGOALS)),$(PYTHON) -m deployments.local.minio_build $(LOCAL) >/dev/null 2>&1 &)
	@# --no-deps: the lock is complete, and pip would look for "sqlalchemy[asyncio]" beside it.
	@# uv, which is in the lock, takes a quarter of pip's time. An index that pip is configured for is pip's alone.
	@{ ! $(PIP) config list | grep index >/dev/null && \
	  awk '/^[a-z]/ { wanted = /^uv==/ } wanted' requirements.txt > .venv/uv.txt && \
	  $(PIP) install --quiet --no-deps --require-hashes -r .venv/uv.txt && \
	  $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --no-deps --require-hashes -r requirements.txt; } || { \
	  echo "Installing with pip, which shows nothing: up to 4 minutes." && \
	  $(PIP) install --quiet --no-deps --require-hashes -r requirements.txt; }
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Installed."

demo: $(STAMP) ## make three videos on this machine alone: no account, no key, no money
	@$(BIN)/sora demo

up: $(STAMP) ## run Prefect, MinIO, a worker, the receiver, the gallery and the sandbox until Ctrl-C
	@$(BIN)/sora up

deploy: $(STAMP) ## deploy prefect.yaml to the server that PREFECT_API_URL names
	@$(BIN)/sora deploy

# Each worker has servers of its own, and often waits for them. Measured on two cores, once each: 333 s with 4, 321 with 5.
TEST_WORKERS ?= 4

# Before the tests, whose time-outs are not made for building a program.
MINIO := $(BIN)/python -m deployments.local.minio_build $(LOCAL) || true

# On a build machine also which lines and branches the suite's own processes ran. What they start, this does not see.
# A line is no longer counted after five hits. Measured with 2,952 tests: 75 s of processor time; 85 with the usual
# threshold, 61 without coverage.
MEASURED := apixo,blocks,flows
COVERAGE ?= $(if $(CI),-m slipcover --branch --threshold 5 --source $(MEASURED) --skip-covered)

minio: $(STAMP)
	@$(MINIO)

test: $(STAMP) ## run all tests, against a real MinIO and a real Prefect server
	@$(MINIO)
	@$(BIN)/python $(COVERAGE) -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

OLDEST := .venv-oldest
# What calls each dependency most: httpx and httpcore, obstore, minio, openpyxl, pillow, av, starlette and jinja2,
# Prefect. SeaweedFS is no dependency, and takes long to start.
OLDEST_TESTS := tests/apixo/test_polling.py tests/blocks/test_object_store.py \
  tests/flows/batch/test_workbooks.py tests/flows/media/test_repaired_http.py tests/flows/media/test_resumed_downloads.py \
  tests/flows/media/test_images.py tests/flows/media/test_videos.py \
  tests/deployments/gallery/test_gateway.py \
  $(addprefix tests/blocks/test_uploads.py::,test_file_is_created_once_and_never_overwritten \
    test_lost_upload_reply_raises_store_unavailable_though_the_object_is_written) \
  $(addprefix tests/flows/test_generate_video.py::,test_video_from_text_is_archived_complete \
    test_start_image_is_checked_before_paying \
    test_run_and_task_names_contain_the_key_and_a_rerun_shows_all_steps \
    test_run_graph_shows_which_results_each_step_was_given)

test-oldest: $(STAMP) ## run a part of the tests with the oldest versions that pyproject.toml allows: a minute
	@$(MINIO)
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(OLDEST)
	@$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps --require-hashes -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps -r requirements-oldest.txt
	@$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps --no-build-isolation -e .
	@$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -k "not seaweedfs_server" \
	  $(OLDEST_TESTS)

attack: $(STAMP) ## crash it at every point, stop its servers, feed it junk: two hours
	@$(MINIO)
	@$(BIN)/python -m pytest -m "attack or sample" -s

# A third store for the comparison, pinned, where Go can build it: half a minute, once.
VERSITYGW := github.com/versity/versitygw/cmd/versitygw@v1.8.0

stores: $(STAMP) ## race MinIO, SeaweedFS and VersityGW, and run the ledger's model on each: see docs/stores.md
	@$(MINIO)
	@test -x $(LOCAL)/bin/versitygw || ! command -v go >/dev/null || \
	  { echo "Building VersityGW."; GOBIN=$(abspath $(LOCAL))/bin CGO_ENABLED=0 GOWORK=off go install $(VERSITYGW); }
	@$(BIN)/python -m pytest -m stores -s -p no:randomly tests/stores

# N="1 10 100 300 1000" takes 15 minutes a round.
N ?= 1 10 100
ROUNDS ?= 3

bench: $(STAMP) ## measure processor time, time, memory and requests per video, and write docs/performance/: 15 minutes
	@$(MINIO)
	@$(BIN)/python -m tests.bench --rounds $(ROUNDS) $(N)

reference: $(STAMP) ## write docs/reference.md from the code
	@$(BIN)/python -m tests.reference

screenshots: $(STAMP) ## retake the pictures of README and docs; needs Chromium
	@$(MINIO)
	@$(BIN)/python -m tests.e2e.screenshots

check: $(STAMP) ## lint, format, types and the direction of imports, changing nothing
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check . || { echo "Run 'make format'." >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: $(STAMP) ## look for known vulnerabilities of the locked packages; needs the internet
	@$(BIN)/uv tool run --from pip-audit==2.10.1 pip-audit --strict --disable-pip --require-hashes -r requirements.txt

format: $(STAMP) ## format, and fix what can be fixed automatically
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

lock: $(STAMP) ## write both lists of requirements from pyproject.toml, and say what changed; UPGRADE=1 takes the newest of all
	@cp requirements.txt .lock-before
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-annotate \
	  -q $(if $(UPGRADE),--upgrade) -o requirements.txt --custom-compile-command "make lock"
	@$(BIN)/uv pip compile pyproject.toml --resolution lowest-direct --python-version 3.11 --no-annotate \
	  -q -o requirements-oldest.txt --custom-compile-command "make lock"
	@changed=$$(diff .lock-before requirements.txt | grep -E '^[<>] [a-z]' | tr -d '\\'); echo "$${changed:-No version changed.}"
	@rm .lock-before
	@echo "Locked. 'make install' installs it."

# The lock of a running stack is held as long as its process lives. Any Python 3 can ask.
require-stopped:
	@test ! -e $(LOCAL)/stack.lock || $(PYTHON) -c 'import fcntl; \
	fcntl.flock(open("$(LOCAL)/stack.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || { \
	  echo "A stack is running (process $$(cat $(LOCAL)/stack.lock)): stop it first, with Ctrl-C in its window." >&2; exit 1; }

clean: require-stopped ## delete local videos, databases, logs and caches; keep .venv and the built MinIO
	@test ! -d $(LOCAL) || chmod -R u+w $(LOCAL)
	@test ! -d $(LOCAL) || find $(LOCAL) -mindepth 1 -maxdepth 1 ! -name bin -exec rm -rf {} +
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## also delete .venv and the built MinIO
	@rm -rf .venv $(OLDEST) $(LOCAL)
