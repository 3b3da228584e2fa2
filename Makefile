# What people and CI run. Nothing here calls sudo; what needs root says so. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

CARGO ?= cargo
# A mirror's index may be ahead of what was tried: the lock file says what is built.
LOCKED ?= --locked
# Built tools and images, kept over checkouts.
TOOLS ?= $(HOME)/.cache/vaina-tools
export VAINA_TOOLS := $(TOOLS)
OUT := target/x86_64-unknown-linux-gnu
# Test output of this run, for the summary.
LOG := target/test.log

# The programs that tests run: the shim as it is shipped, the daemon with its debug assertions.
export VAINA_SHIM := $(abspath $(OUT)/shim/containerd-shim-vaina-v1)
TEST_VAINA := $(abspath $(OUT)/debug/vaina)
export RUST_BACKTRACE ?= 0
# As they are shipped, for people, the demo and figures.
RELEASE_VAINA := $(abspath $(OUT)/release/vaina)

DEBS := build-essential busybox-static crun docker-registry iproute2 iptables libseccomp-dev nftables openssl pkg-config runc

.PHONY: help
help: ## Lists the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 18

# === what a machine needs ===

.PHONY: deps
deps: ## Installs the Debian packages that building and testing need (root)
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.95 or later" >&2; exit 1; }
	@$(call debs,$(DEBS))

# Installs those of the packages that are missing.
debs = missing=$$(for package in $(1); do dpkg-query -Wf '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	if [ -n "$$missing" ]; then \
		command -v apt-get >/dev/null || { echo "these Debian packages are missing, and there is no apt-get:" $$missing >&2; exit 1; }; \
		echo "installing" $$missing; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi

.PHONY: cgroups
cgroups: ## Mounts the cgroup v1 hierarchies without which crun refuses a hybrid machine (root)
	@if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then \
		for name in hugetlb perf_event net_cls net_prio; do \
			grep -q "^$$name\b" /proc/cgroups || continue; \
			[ -e /sys/fs/cgroup/$$name/tasks ] && continue; \
			mkdir -p /sys/fs/cgroup/$$name; \
			mount -t cgroup -o $$name cgroup /sys/fs/cgroup/$$name; \
		done; \
	fi

# === building ===

.PHONY: build
build: deps ## Builds the programs as they are shipped
	$(CARGO) build $(LOCKED) --release -p vaina-cri-server
	$(MAKE) --no-print-directory shim

.PHONY: shim
shim: deps
	$(CARGO) build $(LOCKED) --profile shim -p vaina-shim

.PHONY: install
PREFIX ?= /usr/local
install: build ## Installs the programs to PREFIX/bin (root)
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(RELEASE_VAINA) $(VAINA_SHIM)

# === the demo ===

.PHONY: demo
demo: build ## Runs a pod on this machine and shows, checked, what a pod is (root)
	$(CARGO) build $(LOCKED) --release -p vaina-tests --bin vaina-demo --bin vaina-probe
	VAINA_BIN=$(RELEASE_VAINA) $(OUT)/release/vaina-demo examples/web-and-puller.yaml

# === the benchmark ===

# The newest of containerd 2.3, and the network plugins that it calls.
CONTAINERD := v2.3.4
PEERS := $(TOOLS)/containerd-$(CONTAINERD)
PEER_DEBS := containernetworking-plugins crun runc
BENCH = VAINA_BIN=$(RELEASE_VAINA) VAINA_CONTAINERD=$(PEERS) $(OUT)/release/vaina-bench

.PHONY: bench-program
bench-program: build
	$(CARGO) build $(LOCKED) --release -p vaina-tests --bin vaina-bench --bin vaina-probe

.PHONY: bench
bench: bench-program ## Measures pods, exec, memory, logs and pulls of our own runtime (root; BENCH_FLAGS, such as --quick)
	$(BENCH) --start vaina --json target/bench.json $(BENCH_FLAGS)

.PHONY: peers
peers: $(PEERS)/containerd $(PEERS)/containerd-shim-runc-v2
	@$(call debs,$(PEER_DEBS))

$(PEERS)/%:
	@command -v go >/dev/null || { echo "go is missing: install Go 1.26 or later" >&2; exit 1; }
	cd / && GOBIN=$(@D) CGO_ENABLED=0 go install github.com/containerd/containerd/v2/cmd/$*@$(CONTAINERD)

.PHONY: bench-peers
bench-peers: bench-program peers cgroups ## The same side by side with containerd and runc, and with crun; the figures of docs/ (root)
	$(BENCH) --start vaina --start containerd-runc --start containerd-crun \
		--json docs/performance.json --svg docs/performance.svg --markdown docs/performance.md $(BENCH_FLAGS)

# === the profile ===

.PHONY: profile
profile: build ## Where the time of a pod's start and end goes, as pictures in docs/ (root)
	$(CARGO) build $(LOCKED) --release -p vaina-tests --bin vaina-profile --bin vaina-probe
	VAINA_BIN=$(RELEASE_VAINA) $(OUT)/release/vaina-profile --out docs

# === tests ===

.PHONY: fmt
fmt: ## Formats the sources
	$(CARGO) fmt --all

.PHONY: check
check: deps ## Formatting, lints and the tests that need no root: before each push
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(LOCKED) --workspace --all-targets --all-features -- -D warnings
	# Documentation is for those who work here: links to private items are wanted.
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc $(LOCKED) --workspace --no-deps --document-private-items --quiet

.PHONY: unit
unit: deps ## Unit tests, part tests and the planner's simulation (root)
	$(CARGO) test $(LOCKED) --workspace --exclude vaina-tests 2>&1 | tee -a $(LOG)
	$(CARGO) test $(LOCKED) -p vaina-tests --lib --bins 2>&1 | tee -a $(LOG)

.PHONY: e2e
e2e: deps cgroups shim tools ## End-to-end tests (root); ENDPOINT=containerd-runc or containerd-crun: those of the CRI alone, against it
	$(CARGO) build $(LOCKED) -p vaina-cri-server
ifdef ENDPOINT
	@$(MAKE) --no-print-directory peers
	$(CARGO) build $(LOCKED) -p vaina-tests --bins
	VAINA_BIN=$(TEST_VAINA) VAINA_CONTAINERD=$(PEERS) CARGO=$(CARGO) $(OUT)/debug/vaina-peer $(ENDPOINT) $(TESTS)
else
	VAINA_BIN=$(TEST_VAINA) $(CARGO) test $(LOCKED) -p vaina-tests --test e2e -- $(TESTS) 2>&1 | tee -a $(LOG)
endif

.PHONY: fault
fault: deps cgroups shim failpoints ## Kills daemon, shims and runtimes at moments and failpoints, by chance (root; VAINA_FAULT_SEED, VAINA_FAULT_ROUNDS)
	$(CARGO) build $(LOCKED) -p vaina-cri-server
	VAINA_BIN=$(TEST_VAINA) $(CARGO) test $(LOCKED) -p vaina-tests --test fault -- $(TESTS) 2>&1 | tee -a $(LOG)

.PHONY: fault-all
fault-all: ## Each failpoint with each disturbance (root; VAINA_FAULT_CASE for one point)
	VAINA_FAULT_ALL=1 $(MAKE) --no-print-directory fault TESTS="--nocapture failpoint"

.PHONY: soak
soak: ## Random operations and arbitrary moments for a long time (root; VAINA_SOAK_OPERATIONS)
	VAINA_FAULT_ROUNDS=1000 VAINA_SOAK_OPERATIONS=$${VAINA_SOAK_OPERATIONS:-10000} $(MAKE) --no-print-directory fault TESTS="--nocapture moment operations together"

# Programs with failpoints lie apart from those of users, and are built apart.
FAILPOINTS := target/failpoints/$(notdir $(OUT))/debug
export VAINA_FAILPOINTS_BIN := $(abspath $(FAILPOINTS)/vaina)
export VAINA_FAILPOINTS_SHIM := $(abspath $(FAILPOINTS)/containerd-shim-vaina-v1)

.PHONY: failpoints
failpoints: deps
	$(CARGO) build $(LOCKED) --target-dir target/failpoints -p vaina-cri-server -p vaina-shim \
		--features vaina-cri-server/failpoints,vaina-shim/failpoints

CRI_TOOLS := v1.36.0
CRITEST := $(TOOLS)/bin/critest-$(CRI_TOOLS)

CRICTL := $(TOOLS)/bin/crictl-$(CRI_TOOLS)

.PHONY: tools
tools: $(CRICTL) ## The Kubernetes project's client, with which streaming is tested

$(CRICTL):
	@command -v go >/dev/null || { echo "go is missing: install Go 1.26.4 or later" >&2; exit 1; }
	cd / && GOBIN=$(@D)/new go install sigs.k8s.io/cri-tools/cmd/crictl@$(CRI_TOOLS)
	mv $(@D)/new/crictl $@ && rmdir $(@D)/new

.PHONY: critest-tools
critest-tools: $(CRITEST)

# Its sources are a test, so it is not to be had by `go install`: built in the module's own directory, as its authors do.
$(CRITEST):
	@command -v go >/dev/null || { echo "go is missing: install Go 1.26.4 or later" >&2; exit 1; }
	mkdir -p $(@D)
	cd "$$(cd / && go mod download -json sigs.k8s.io/cri-tools@$(CRI_TOOLS) | sed -n 's/^\s*"Dir": "\(.*\)",*$$/\1/p')" && go test -c -o $@ ./cmd/critest

.PHONY: critest
critest: deps cgroups shim critest-tools ## The conformance suite of the Kubernetes project, one run (root)
	$(CARGO) build $(LOCKED) -p vaina-cri-server
	VAINA_BIN=$(TEST_VAINA) $(CARGO) test $(LOCKED) -p vaina-tests --test conformance -- --nocapture $(TESTS) 2>&1 | tee -a $(LOG)

.PHONY: conformance-report
conformance-report: deps ## Writes docs/conformance.md: which test proves which row of CRI v1
	$(CARGO) run $(LOCKED) --quiet -p vaina-tests --bin vaina-conformance

.PHONY: critest-full
critest-full: deps cgroups shim critest-tools ## The same over SPDY and WebSocket, with our runtime and crun (root)
	$(CARGO) build $(LOCKED) -p vaina-cri-server
	VAINA_BIN=$(TEST_VAINA) $(CARGO) test $(LOCKED) -p vaina-tests --features full-conformance --test conformance -- --nocapture --test-threads 1 $(TESTS) 2>&1 | tee -a $(LOG)

# Unmodified, from its module (tests/kubelet).
KUBELET_VERSION := v1.36.3
KUBELET := $(TOOLS)/bin/kubelet-$(KUBELET_VERSION)
KUBELET_CLIENT := $(TOOLS)/bin/kubelet-client-$(KUBELET_VERSION)

.PHONY: kubelet
kubelet: $(KUBELET) $(KUBELET_CLIENT) ## The Kubernetes project's kubelet, and a client of its server

$(KUBELET):
	$(call go-build,-X k8s.io/component-base/version.gitVersion=$(KUBELET_VERSION),.)

$(KUBELET_CLIENT): tests/kubelet/client/main.go
	$(call go-build,,./client)

go-build = command -v go >/dev/null || { echo "go is missing: install Go 1.26.4 or later" >&2; exit 1; }; \
	mkdir -p $(@D) && cd tests/kubelet && CGO_ENABLED=0 go build -p 2 -trimpath -ldflags '-s -w $(1)' -o $@.new $(2) && mv $@.new $@

.PHONY: test-kubelet
test-kubelet: deps cgroups shim kubelet tools ## Pods of an unmodified kubelet (root)
	$(CARGO) build $(LOCKED) -p vaina-cri-server
	# They mostly wait for what a kubelet does once a minute.
	VAINA_BIN=$(TEST_VAINA) $(CARGO) test $(LOCKED) -p vaina-tests --test kubelet -- --test-threads 6 $(TESTS) 2>&1 | tee -a $(LOG)

# === the guest node ===

VM_DEBS := qemu-system-x86 qemu-utils debootstrap debian-archive-keyring e2fsprogs util-linux
GROUPS := guest e2e-cgroup2
GUEST := $(OUT)/guest/vaina-guest

.PHONY: vm-programs
vm-programs: deps shim
	@$(call debs,$(VM_DEBS))
	$(CARGO) build $(LOCKED) --profile guest -p vaina-cri-server
	$(CARGO) build $(LOCKED) --profile guest -p vaina-tests --bins

.PHONY: test-vm
test-vm: LOG := target/vm/test.log
test-vm: export VAINA_BIN = $(abspath $(OUT)/guest/vaina)
# The guest's processor is emulated.
test-vm: export VAINA_TEST_PATIENCE ?= 10
test-vm: export CARGO := $(CARGO)
test-vm: vm-programs tools ## Groups of tests in a Debian guest with systemd and cgroup v2: GROUPS="e2e-cgroup2" (root)
	@mkdir -p target/vm && : > $(LOG)
	$(GUEST) test $(GROUPS) --results target/vm -- $(TESTS) 2>&1 | tee -a $(LOG)
	@$(call summary)

.PHONY: vm-shell
vm-shell: ## A root shell in the guest that GROUP="e2e-cgroup2" has left (root)
	@[ -x $(GUEST) ] || { echo "no group has run yet: make test-vm" >&2; exit 1; }
	$(GUEST) shell target/vm/$(or $(GROUP),e2e-cgroup2)

# containerd's default seccomp profile, which ours is compared with; it depends on the architecture that asks.
SECCOMP_DEBS := qemu-user-static

.PHONY: seccomp-reference
seccomp-reference: ## Prints containerd's seccomp profile anew into tests/seccomp, for the comparison in the unit tests (root)
	@$(call debs,$(SECCOMP_DEBS))
	@mkdir -p $(TOOLS)/seccomp
	cd tests/seccomp && export CGO_ENABLED=0 && for arch in amd64 arm64; do \
		GOARCH=$$arch go build -o $(TOOLS)/seccomp/reference-$$arch . ; \
	done
	cd tests/seccomp && calls=$$(go list -m -f '{{.Dir}}' golang.org/x/sys) && \
		$(TOOLS)/seccomp/reference-amd64 $$calls > amd64.json && qemu-aarch64-static $(TOOLS)/seccomp/reference-arm64 $$calls > arm64.json
	$(CARGO) test $(LOCKED) -p vaina-cri-server --lib -- --nocapture containerds

CARGO_FUZZ := 0.13.2
FUZZ := $(TOOLS)/bin/cargo-fuzz
FUZZ_SECONDS ?= 20

# Outside the checkout, whose configuration is for programs of other kinds.
$(FUZZ):
	cd / && $(CARGO) install --quiet --locked --version $(CARGO_FUZZ) --root $(TOOLS) cargo-fuzz

# A target and what it is built with.
fuzz-one = mkdir -p target/fuzz/$(1) && RUSTC_BOOTSTRAP=1 $(FUZZ) fuzz run --fuzz-dir fuzz $(2) $(1) target/fuzz/$(1) fuzz/corpus/$(1) -- \
	-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1

.PHONY: fuzz
fuzz: $(FUZZ) ## Feeds what is read of clients with what nobody would send (FUZZ_SECONDS for each target)
	$(call fuzz-one,spdy)
	# Of our own code, which is safe: panics are looked for, not memory errors.
	$(call fuzz-one,cri,--sanitizer none --features cri)

.PHONY: test
test: ## Everything that must pass before a change lands (root)
	@mkdir -p target && : > $(LOG)
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory e2e
	$(MAKE) --no-print-directory fault
	$(MAKE) --no-print-directory critest
	@$(call summary)

# The sum of all `test result` lines of this run, in the form that is looked for.
summary = awk '/^test result:/ { passed += $$4; failed += $$6; skipped += $$8 } \
	END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit !passed || failed }' $(LOG)
