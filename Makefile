# make demo      see it work: local prefill against a streamed context, over an emulated link
# make install   only make .venv
# make test      lint, the test suite, and that single-event tests reach every branch of the planner
.PHONY: install demo test lint clean

COMPILED = $(wildcard src/preread/engine/*.[ch] src/preread/codec/*.[ch])

install: .venv/.installed
demo: .venv/.installed
	.venv/bin/preread demo $(ARGS)

test: lint
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	.venv/bin/coverage run -m pytest tests/plan --ignore=tests/plan/test_plan.py --ignore=tests/plan/test_orders.py
	.venv/bin/coverage report

lint: .venv/.dev
	.venv/bin/ruff check src tests
	.venv/bin/ruff format --check src tests
	.venv/bin/mypy
	.venv/bin/lint-imports

.venv/.installed: pyproject.toml scripts/install $(COMPILED)
	scripts/install
	touch $@

.venv/.dev: pyproject.toml scripts/install $(COMPILED)
	scripts/install dev
	touch $@ .venv/.installed

clean:
	rm -rf .venv build src/*.egg-info src/preread/*/_*.so
