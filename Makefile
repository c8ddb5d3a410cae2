# `make demo` and `make test` are all that a new machine needs; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# One optimised profile for everything: RocksDB and FAISS take long to compile, once for every profile.
CARGO_FLAGS := --release --locked
# Two whole-cluster tests at once are what two cores carry without starving heartbeats.
TEST_THREADS ?= 2

# Command that shows that a package is there : Debian package.
PACKAGES := cmake:cmake g++:g++ pkg-config:pkg-config strace:strace mkfs.ext4:e2fsprogs ip:iproute2 iptables:iptables
LIBRARIES := libclang-dev libopenblas-dev libfaketime
export OPENBLAS_NUM_THREADS := 1

.PHONY: help deps build demo test sim programs planted jepsen campaign soak bench fmt verify deny

help: ## Lists the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

deps: ## Installs what the machine lacks (Debian and Ubuntu packages).
	@missing=(); \
	for pair in $(PACKAGES); do command -v "$${pair%%:*}" >/dev/null || [ -x "/sbin/$${pair%%:*}" ] || missing+=("$${pair##*:}"); done; \
	for library in $(LIBRARIES); do dpkg -s "$$library" >/dev/null 2>&1 || missing+=("$$library"); done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
	  echo "installing: $${missing[*]}" >&2; \
	  root=(); [ "$$(id -u)" -eq 0 ] || root=(sudo); \
	  "$${root[@]}" apt-get update -q; \
	  "$${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$${missing[@]}"; \
	fi
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust $$(grep -m1 rust-version Cargo.toml | cut -d'"' -f2) or newer" >&2; exit 1; }

build: deps ## Builds the one binary.
	cargo build $(CARGO_FLAGS) -p quorate

demo: build ## Three nodes, real text, agents, and a leader that is killed twice.
	cargo run $(CARGO_FLAGS) -q -p quorate --bin quorate -- demo

test: build ## All tests, the smoke simulation included.
	cargo test $(CARGO_FLAGS) --workspace -- --test-threads=$(TEST_THREADS)
	$(MAKE) sim SEEDS=20

SEEDS ?= 200
STEPS ?= 20000
# The simulation is a workspace of its own (its tokio is compiled with another cfg), and so has a target directory of its own.
sim: deps ## The simulation: SEEDS=200 of STEPS=20000 from SEED=1 on, with its tests.
	cd tests/sim && CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/sim" cargo test $(CARGO_FLAGS)
	cd tests/sim && CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/sim" cargo run $(CARGO_FLAGS) -q -- --seed $(or $(SEED),1) --seeds $(SEEDS) --steps $(STEPS)

# Where the programs are, and those that the chaos suite and its campaign use. Bugs are compiled into the two that are called
# planted, and into the simulation; no release has them.
RELEASE := $${CARGO_TARGET_DIR:-$(CURDIR)/target}/release
SIM := $${CARGO_TARGET_DIR:-$(CURDIR)/target}/sim/release/quorate-sim
# Namespaces, iptables and loop devices need root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
MINUTES ?= 10
HOURS ?= 2
LEDGER := jepsen/LEDGER.md
# What is run, for the ledger. The ledger's own new lines change nothing of that.
COMMIT = $$(git describe --always)$$(test -z "$$(git status --porcelain -- . ':!$(LEDGER)')" || echo -dirty)
# Pieces of the campaign, or planted bugs, at the same time.
JOBS ?= 1
programs: build
	cargo build $(CARGO_FLAGS) -p quorate --features planted --bin quorate-planted
	cargo build $(CARGO_FLAGS) -p quorate-jepsen --bin quorate-jepsen
	cargo build $(CARGO_FLAGS) -p quorate-jepsen --features planted --bin quorate-jepsen-planted
	cd tests/sim && CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/sim" cargo build $(CARGO_FLAGS)

planted: programs ## Shows which planted bugs the simulation and the chaos suite catch; JOBS=1 at once.
	"$(SIM)" --planted all
	$(AS_ROOT) "$(RELEASE)/quorate-jepsen" planted --jobs $(JOBS)

jepsen: programs ## Real processes under real faults for MINUTES=10: workloads and nemeses in rotation, from SEED on.
	$(AS_ROOT) "$(RELEASE)/quorate-jepsen" all --time-limit $$(($(MINUTES) * 60)) $(if $(SEED),--seed $(SEED))

campaign: programs ## The next MINUTES=10 of the long list, JOBS=1 pieces at once, kept in jepsen/LEDGER.md.
	$(AS_ROOT) "$(RELEASE)/quorate-jepsen" campaign --minutes $(MINUTES) --jobs $(JOBS) \
	  --commit "$(COMMIT)" --ledger $(LEDGER) --sim "$(SIM)"

soak: programs ## HOURS=2 of everything, with a floor on each minute's throughput, kept in jepsen/LEDGER.md.
	$(AS_ROOT) "$(RELEASE)/quorate-jepsen" soak --hours $(HOURS) --commit "$(COMMIT)" --ledger $(LEDGER)

bench: deps ## The criterion benches (the cluster benches are `quorate bench`).
	cargo bench --locked -p quorate-raft -p quorate-index

fmt: ## Formats the code.
	cargo fmt --all
	cd tests/sim && cargo fmt --all

verify: deps ## The read-only gate: format, clippy, tests, docs, deny.
	cargo fmt --all --check
	cd tests/sim && cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	cd tests/sim && CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/sim" cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --workspace --no-deps
	$(MAKE) deny
	$(MAKE) test

# Advisories need the advisory database from the network; the workflow checks them too.
DENY_CHECKS ?= bans licenses sources
deny: ## Licences, banned crates and sources of the dependencies.
	@cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --workspace check $(DENY_CHECKS)
