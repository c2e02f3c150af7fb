# demo, test, check, docs and bench each set up what they need: .venv from the first Python >= 3.11 found, with the
# versions of constraints.txt. Another interpreter: make demo PYTHONS=/path/to/python
PYTHONS ?= python3.11 python3.12 python3.13 python3
PIP = .venv/bin/python -m pip --quiet --disable-pip-version-check
# Python 3.11 has no sys.monitoring: coverage then takes a tracer that doubles the time of many tests, so it is off there.
# With it on any version: make test COVERAGE=--cov
COVERAGE ?= $(shell .venv/bin/python -c "import sys; print('--cov --cov-report=term' * (sys.version_info >= (3, 12)))")
# --strict: a warning, such as a broken link, is an error (with --quiet it is not counted, so --quiet is left out). The
# variable hides a notice about the future of the tools.
DOCS = NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

.PHONY: demo test test-slow test-slurm test-hosts check docs bench clean testbed
.NOTPARALLEL:

demo: .venv/.installed
	.venv/bin/unweft run scenarios/demo.toml

# two files at a time: many tests wait for processes of their own
test: .venv/.installed-dev
	@[ -n "$(COVERAGE)" ] || echo "coverage is off on Python 3.11; with it: make test COVERAGE=--cov"
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(COVERAGE)

# whole experiments, benchmarks and browser pages
test-slow: .venv/.installed-dev
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

# container tests; without a Docker engine they are skipped, and say so
testbed: .venv/.installed-dev
	UNWEFT_TESTBED=1 .venv/bin/python -m pytest tests/testbed

# a Slurm cluster on this machine; without Slurm's daemons (Debian: slurm-wlm, munge) they are skipped, and say so
test-slurm: .venv/.installed-dev
	UNWEFT_SLURM=1 .venv/bin/python -m pytest tests/slurm

# three hosts as network namespaces; they need root, iproute2 and libfaketime, or are skipped, and say so
test-hosts: .venv/.installed-dev
	UNWEFT_HOSTS=1 .venv/bin/python -m pytest tests/hosts

check: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m mypy
	$(DOCS)

docs: .venv/.installed-dev
	$(DOCS)

bench: .venv/.installed
	.venv/bin/unweft bench

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

.venv/bin/python:
	@for name in $(PYTHONS); do \
	    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "unweft needs Python 3.11 or later; tried: $(PYTHONS)" >&2; \
	    echo "install one, or name it: make PYTHONS=/path/to/python" >&2; exit 1; \
	fi; \
	echo "setting up .venv with $$($$python --version) ..."; \
	$$python -m venv .venv || { rm -rf .venv; \
	    echo "$$python cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2; exit 1; }

.venv/.installed: setup.cfg pyproject.toml constraints.txt | .venv/bin/python
	@echo "setting up .venv: installing unweft (minutes the first time: torch is large) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: setup.cfg pyproject.toml constraints.txt | .venv/bin/python
	@echo "setting up .venv: installing unweft and what its tests need (minutes the first time: torch is large) ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch .venv/.installed $@
