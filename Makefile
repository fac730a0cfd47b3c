# `make` alone lists the targets. Each does the set-up that it needs; set-up is quick when there is nothing to do.
PYTHON := .venv/bin/python

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

setup:  ## install what is needed: Debian packages (as root) and .venv
	@scripts/setup demo

demo:  ## the whole arc on this machine: protect, replicate, burn down, panic, boot, go home
	@scripts/setup demo
	@$(PYTHON) -m demo

rescue-iso:  ## the rescue image, build/understudy-rescue.iso (URL=https://... builds the service's address in)
	@scripts/setup rescue
	@$(PYTHON) -m rescue $(if $(URL),--url $(URL))

test:  ## all tests but the long ones
	@scripts/setup test
	$(PYTHON) -m pytest -m "not long"

test-long:  ## every test
	@scripts/setup test-long
	$(PYTHON) -m pytest

check:  ## lint, format and types
	@scripts/setup check
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench:  ## measure what is promised, beside what one would pick instead
	@scripts/setup test
	$(PYTHON) -m bench

clean:  ## remove what the other targets made, but for .venv
	rm -rf .cache .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info

.PHONY: help setup demo rescue-iso test test-long check bench clean
