# Everything that a target needs is installed into .venv the first time, and again when the requirements change.

PYTHON ?= python3
VENV ?= .venv
# An index of torch's own smaller builds, such as the CPU's, https://download.pytorch.org/whl/cpu. Empty: PyPI.
TORCH_INDEX ?=
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
# What the page needs is over what the rest needs: Gradio asks for an older Pillow than requirements.txt has.
APP := $(VENV)-app
# And the plug-in is tested with other releases of diffusers, those of tests/plugin/diffusers-*.txt.
RELEASES := $(patsubst tests/plugin/diffusers-%.txt,%,$(wildcard tests/plugin/diffusers-*.txt))
# Written before anything else, so that an environment without it is known to be somebody's own.
OURS := $(VENV)/made-by-make

.PHONY: help demo app mlx test test-plugin lint clean

help:
	@echo 'make demo   the shipped model with and without DeepCache (ARGS="--steps 20": options of stable_diffusion.py)'
	@echo 'make app    a page in the browser to try it on (ARGS="--port 8000": options of app.py)'
	@echo 'make mlx    installs MLX into $(VENV), for python -m apple.sample (a Mac, or Linux with glibc 2.35 or later)'
	@echo 'make test   all tests (ARGS="-k schedule": options of pytest)'
	@echo 'make test-plugin   the tests of the plug-in, with diffusers $(RELEASES)'
	@echo 'make lint   formatting, lint and types'
	@echo 'make clean  removes caches and build/; results, outputs/, inputs/ and $(VENV) stay'
	@echo
	@echo 'The first of them installs about 6 GB into $(VENV). Other settings:'
	@echo '  PYTHON=python3.12      which Python, 3.11 or 3.12'
	@echo '  VENV=.venv-deepcache   another folder'
	@echo '  TORCH_INDEX=https://download.pytorch.org/whl/cpu   torch without CUDA libraries, for machines without a GPU'

demo: $(VENV)/installed
	$(RUN) stable_diffusion.py $(ARGS)

app: $(APP)/installed
	$(APP)/bin/python app.py $(ARGS)

# No part of requirements-dev.txt, since MLX has no wheel for older Linux; tests skip what it is not there for.
mlx: $(VENV)/installed
	$(PIP) install -r requirements-mlx.txt

test: $(VENV)/installed $(APP)/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto $(ARGS)

test-plugin: $(RELEASES:%=$(VENV)-diffusers-%/installed)
	@for release in $(RELEASES); do \
		echo "The plug-in with diffusers $$release"; \
		HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)-diffusers-$$release/bin/python -m pytest -q -n auto tests/plugin \
			$(ARGS) || exit 1; \
	done

lint: $(VENV)/installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# `installed` is made last, so that an interrupted installation starts over, in a folder emptied of all but our mark.
# Changed requirements are installed over what is there.
$(VENV)/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12)) and \
		f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}; try: make PYTHON=python3.11")'
	@if [ -e $(VENV) ] && [ ! -e $(OURS) ]; then \
		echo "$(VENV) was not made by this Makefile and is left alone; move it away, or: make VENV=.venv-deepcache" >&2; \
		exit 1; \
	fi
	@if [ ! -e $@ ]; then \
		mkdir -p $(VENV) && touch $(OURS) && \
		find $(VENV) -mindepth 1 -maxdepth 1 ! -name $(notdir $(OURS)) -exec rm -rf {} + && \
		$(PYTHON) -m venv $(VENV); \
	fi
	@echo "Installing into $(VENV): $(if $(TORCH_INDEX),torch of $(TORCH_INDEX),torch with its CUDA libraries (about 6 GB)), and the rest"
ifneq ($(TORCH_INDEX),)
	$(PIP) install --no-deps --index-url $(TORCH_INDEX) $$(grep -E '^(torch|torchvision)==' requirements.txt)
endif
	$(PIP) install -r requirements.txt -r requirements-dev.txt
	@touch $@

# An environment of its own that sees all of the other's packages, and has what differs, the first prerequisite, in front
# of them.
define installed-over
@if [ -e $(@D) ] && [ ! -e $(@D)/made-by-make ]; then \
	echo "$(@D) was not made by this Makefile and is left alone; move it away, or name another VENV" >&2; \
	exit 1; \
fi
@echo "Installing into $(@D): $(1)"
@rm -rf $(@D)
@mkdir -p $(@D) && touch $(@D)/made-by-make
$(PYTHON) -m venv $(@D) --without-pip
@$(RUN) -c 'import pathlib, sys, sysconfig; site = pathlib.Path(sysconfig.get_path("purelib")); \
	pathlib.Path("$(@D)", site.relative_to(sys.prefix), "deepcache.pth").write_text(f"{site}\n")'
$(PIP) --python $(@D)/bin/python install -r $<
@touch $@
endef

$(APP)/installed: requirements-app.txt $(VENV)/installed
	$(call installed-over,Gradio (about 350 MB))

$(VENV)-diffusers-%/installed: tests/plugin/diffusers-%.txt $(VENV)/installed
	$(call installed-over,diffusers $* and what it needs (up to 250 MB))

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . \( -path ./outputs -o -path ./inputs -o -path './.venv*' -o -path ./.git \) -prune \
		-o -name __pycache__ -type d -prune -exec rm -rf {} +
