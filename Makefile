# make demo      see it work: local prefill against a streamed context, over an emulated link
# make install   only make .venv; no compiler is needed, llama.cpp comes prebuilt
# make native    compile llama.cpp for this machine's CPU instead, in some minutes: faster; make demo NATIVE=1 does so first
# make test      lint, the test suite, and that single-event tests reach every branch of the planner
# make long      tests of minutes: benches and fits from end to end, a long run of faults, --watch, a wider schemathesis
# make docs      the documentation's site, in build/site: python3 -m http.server -d build/site shows it
# make prebuilt  try an installation without a compiler, in a clone of this checkout
# make deploy    the image, run as Kubernetes and systemd run it; as root, with mmdebstrap, umoci, runc and skopeo of Debian
# make buckets   stores in buckets of Ceph and of Azurite: with ceph-mon, ceph-osd and radosgw of Debian, and npm
# make vllm      the connector in vLLM's CPU build, in an environment of its own, of 4 GB
# make wheels    build preread's wheels and llama.cpp's, for x86-64 and aarch64, and try them without a compiler: long
# make clients   official clients and their own calls, in environments of their own: see docs/clients.md
#
# With CPU=avx2 all is as on a processor without AVX-512: llama.cpp is compiled for AVX2, in .venv-avx2, and preread's
# own code takes no wider vectors. So `make test CPU=avx2` tests what many users have on a machine that has more.
.PHONY: install native prebuilt wheels demo test long deploy buckets vllm clients lint docs clean

CPU = native
venv = .venv$(if $(filter-out native,$(CPU)),-$(CPU))
export CPU
ifeq ($(CPU),avx2)
export PREREAD_VECTOR_BITS = 256
endif

COMPILED = $(wildcard src/preread/engine/*.[ch] src/preread/codec/*.[ch])

install: $(venv)/.installed
native:
	scripts/install native
	touch $(venv)/.installed
demo: $(if $(NATIVE),native,$(venv)/.installed)
	$(venv)/bin/preread demo $(ARGS)

# Two processes share the processors: llama.cpp's threads wait for each other asleep, as who waits awake takes a processor
# from whom it waits for, and NumPy and PyTorch have one thread each. Compiled modules are kept, whatever the environment
# says: else each of the hundreds of processes that tests start would compile all of them.
test: lint docs
	PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(venv)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 5
	$(venv)/bin/coverage run -m pytest tests/plan --ignore=tests/plan/test_plan.py --ignore=tests/plan/test_orders.py --ignore=tests/plan/test_schedule_orders.py
	$(venv)/bin/coverage report
	@mkdir -p build && git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null >build/tested || true

long: $(venv)/.dev
	$(venv)/bin/python -m pytest -m long

prebuilt:
	scripts/try_prebuilt demo

deploy: $(venv)/.dev
	rm -rf build/image
	$(venv)/bin/python scripts/image build/image
	PREREAD_IMAGE=$(CURDIR)/build/image $(venv)/bin/python -m pytest -m '' tests/deploy

# What is not installed is skipped, and said so.
buckets: $(venv)/.dev
	npm install --prefix build/azurite --no-audit --no-fund --loglevel=error azurite || echo "make: no azurite"
	PATH="$(CURDIR)/build/azurite/node_modules/.bin:$$PATH" $(venv)/bin/python -m pytest -m '' -rs tests/store/test_buckets.py

vllm: $(venv)/.installed
	scripts/vllm $(ARGS)

# 77: what it takes to try them is not here, and it says so.
wheels: $(venv)/.installed
	$(venv)/bin/python scripts/wheels build/wheels
	for machine in x86_64 aarch64; do PYTHON=$(venv)/bin/python scripts/try_wheels build/wheels $$machine || [ $$? = 77 ] || exit 1; done

clients: $(venv)/.installed
	$(venv)/bin/python scripts/clients $(ARGS)

lint: $(venv)/.dev
	$(venv)/bin/ruff check src tests examples scripts/docsite scripts/engine_wheel.py scripts/hybrid scripts/release scripts/wheels
	$(venv)/bin/ruff format --check src tests examples scripts/docsite scripts/engine_wheel.py scripts/hybrid scripts/release scripts/wheels
	$(venv)/bin/mypy
	$(venv)/bin/lint-imports

# Any link, page or name that leads nowhere is an error. Nothing is fetched.
docs: $(venv)/.dev
	PYTHONPATH=scripts $(venv)/bin/python -m docsite build/docs
	PYTHONPATH=scripts NO_MKDOCS_2_WARNING=1 $(venv)/bin/python -m mkdocs build --strict --quiet

$(venv)/.installed: pyproject.toml scripts/install scripts/prebuilt scripts/engine_wheel.py $(COMPILED)
	scripts/install
	touch $@

$(venv)/.dev: pyproject.toml scripts/install $(COMPILED)
	scripts/install dev
	touch $@ $(venv)/.installed

clean:
	rm -rf .venv .venv-* build src/*.egg-info src/preread/*/_*.so
