# `make demo` and `make test` set up all that they need; `make help` lists the rest.

# Everything is built once, in the dev profile, and shared by the demo, the examples and the tests, which look for it in
# target/debug: a target directory or platform from elsewhere would hide it from them.
export CARGO_TARGET_DIR := $(CURDIR)/target
unexport CARGO_BUILD_TARGET

# JDK 17 or newer, also where `java` is an older one. Looked up when a recipe needs it: it may just have been installed.
WITH_JDK = export JAVA_HOME="$$(scripts/find-jdk)" && export PATH="$$JAVA_HOME/bin:$$PATH" &&
CARGO = cargo
MAVEN = "$$(scripts/find-maven)" -q -B -ntp -Dstyle.color=never -f plugins-java/pom.xml
PYTHON = .venv/bin/python

JARS = plugins-java/samples/target/header-auth.jar plugins-java/samples/target/cert-loader.jar
JAVA_SOURCES = $(shell find plugins-java plugin-proto/proto -type f \
	\( -path '*/src/main/*' -o -name pom.xml -o -name '*.proto' \) -not -path '*/target/*')
EXAMPLE_SCRIPTS = examples/upstream.py examples/proxy_process.py examples/check.py examples/quickstart/demo.py

# For how long `make fuzz` runs each target.
FUZZ_SECONDS = 60

section = @printf '\n== %s\n' "$(1)"

.PHONY: help setup system-packages python java rust go demo examples test test-rust test-python test-java bench bench-smoke lint fuzz soak exam clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make demo       sets everything up and shows what palisade does'
	@echo 'make test       sets everything up and runs all tests: Rust, Python, Java, examples, demo'
	@echo 'make setup      system packages, .venv with the Python SDK, the Java SDK, palisade itself'
	@echo 'make examples   runs every example and sees that it does what it should'
	@echo 'make lint       formatting, clippy, types'
	@echo 'make test-rust, make test-python, make test-java: one language'
	@echo 'make bench      compares palisade with nginx, HAProxy and Envoy: target/bench (BENCH="--only plain": less)'
	@echo 'make fuzz       fuzzes what reads untrusted bytes, $(FUZZ_SECONDS) s each (FUZZ_SECONDS=600: longer)'
	@echo 'make soak       tests that take minutes: changes and crashes under load, 10,000 restarts; figures of supervision'
	@echo 'make exam       1,000,000 requests, three of ten given up: each gets its own verdict (release build, minutes)'
	@echo 'make clean      removes what was built'

setup: system-packages python java rust go

system-packages:
	$(call section,system packages)
	@scripts/system-packages

python: system-packages
	$(call section,Python: virtual environment with the SDK)
	@scripts/python-env

java: system-packages
	$(call section,Java: SDK and samples)
	@$(MAKE) -s --no-print-directory $(JARS)

# One run of Maven makes both.
$(JARS) &: $(JAVA_SOURCES)
	@echo mvn package
	@$(WITH_JDK) $(MAVEN) -DskipTests package
	@touch $(JARS)

rust: system-packages
	$(call section,Rust: palisade and the plugins of the examples)
	$(CARGO) build --locked --workspace

# The tests that need them are skipped where this machine can't build them.
go:
	$(call section,Go: plugins for the tests)
	@scripts/go-plugins target/go-plugins || [ $$? = 3 ]

demo: setup
	$(call section,demo)
	@$(WITH_JDK) $(PYTHON) examples/quickstart/demo.py

examples: setup
	$(call section,examples)
	@$(WITH_JDK) $(PYTHON) examples/check.py

test: setup lint test-rust test-python test-java examples demo bench-smoke
	$(call section,all tests passed)

test-rust: setup
	$(call section,Rust: tests)
	@echo cargo test --locked --workspace
	@$(WITH_JDK) $(CARGO) test --locked --workspace

test-python: python
	$(call section,Python: tests)
	cd plugins-python && ../$(PYTHON) -m pytest -q

test-java: system-packages
	$(call section,Java: tests)
	@echo mvn verify
	@$(WITH_JDK) $(MAVEN) verify
	@touch $(JARS)
	@echo; grep -h '^Tests run' plugins-java/*/target/*-reports/*.txt

# rustup can leave out rustfmt and clippy. Tests don't need them, and a newcomer should not need to install them.
lint: setup
	$(call section,Rust: formatting)
	@if cargo fmt --version >/dev/null 2>&1; then set -x; $(CARGO) fmt --all --check; \
		else echo 'skipped: rustfmt is not installed (rustup component add rustfmt)'; fi
	$(call section,Rust: clippy)
	@if cargo clippy --version >/dev/null 2>&1; then set -x; $(CARGO) clippy --locked --workspace --all-targets -- -D warnings; \
		else echo 'skipped: clippy is not installed (rustup component add clippy)'; fi
	$(call section,Go: formatting)
	@if command -v gofmt >/dev/null; then found="$$(gofmt -l tests/go)" && test -z "$$found" || { echo "$$found"; exit 1; }; \
		else echo 'skipped: Go is not installed'; fi
	$(call section,Python: types)
	cd plugins-python && ../$(PYTHON) -m mypy
	MYPYPATH=examples $(PYTHON) -m mypy --strict --cache-dir .mypy_cache $(EXAMPLE_SCRIPTS)
	MYPYPATH=tests/bench $(PYTHON) -m mypy --strict --cache-dir .mypy_cache tests/bench/*.py

# The sanitizers and the coverage of the compiler are unstable, which RUSTC_BOOTSTRAP makes usable without a nightly
# toolchain. What is found is kept in target/fuzz, beside the seeds in the repository.
fuzz:
	@cargo fuzz --version >/dev/null 2>&1 || \
		{ echo 'cargo-fuzz is not installed: cargo install cargo-fuzz --locked' >&2; exit 1; }
	for crate in plugin-proto proxy; do (cd $$crate && for target in $$(cargo fuzz list); do \
		corpus="$(CARGO_TARGET_DIR)/fuzz/$$target" && mkdir -p "$$corpus" && \
		CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)/fuzz/build" RUSTC_BOOTSTRAP=1 cargo fuzz run "$$target" "$$corpus" \
			"fuzz/corpus/$$target" -- -max_total_time=$(FUZZ_SECONDS) -timeout=25 || exit; done) || exit; done

# The long forms of tests that have a short one among the others; they print what they have counted.
soak: rust
	$(CARGO) build --locked --workspace --all-targets
	$(CARGO) test --locked -p palisade-tests -- --ignored --nocapture --test-threads=1
	$(CARGO) build --locked --release -p palisade-supervisor --examples
	PALISADE_SOAK_CYCLES=10000 $(CARGO) test --locked --release -p palisade-supervisor --test leaks -- --nocapture
	$(CARGO) bench --locked -p palisade-supervisor --bench figures

exam:
	$(CARGO) build --locked --release -p palisade -p palisade-tests --bins
	timeout 3600 $(CARGO) test --locked --release -p palisade-tests --test exam -- --ignored --nocapture

bench: setup
	$(call section,benchmark)
	$(CARGO) build --locked --release -p palisade -p example-plugin-filter
	$(CARGO) build --locked --release -p palisade-tests --bin bench-auth --bin bench-load
	@$(WITH_JDK) $(PYTHON) tests/bench/bench.py $(BENCH)

# Sees that the benchmark works, not how fast anything is: with what is installed, or SMOKE=--install, which would put
# proxies onto a machine that is somebody's.
bench-smoke: setup
	$(call section,benchmark: smoke test)
	@$(WITH_JDK) $(PYTHON) tests/bench/bench.py --smoke $(SMOKE) --programs target/debug --out target/bench-smoke

clean:
	rm -rf target .venv .tools .mypy_cache .pytest_cache plugins-python/.mypy_cache plugins-python/.pytest_cache
	rm -rf plugins-java/target plugins-java/sdk/target plugins-java/samples/target plugin-proto/fuzz/target proxy/fuzz/target
	rm -rf examples/*/certs
	find examples plugins-python -name __pycache__ -prune -exec rm -rf {} +
