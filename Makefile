# `make help` lists the targets: the text after ## is their help.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Go's own tarball does not put itself on PATH, Debian keeps some of the tools
# the tests call in sbin.
export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
GO ?= go

# Everything is compiled as it is shipped, and so only once. Without gRPC's trace
# pages, which nothing serves, the linker can leave out what nobody calls.
export CGO_ENABLED := 0
export GOFLAGS := $(GOFLAGS) -trimpath -tags=grpcnotrace

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unversioned)
LDFLAGS := -s -w
PROGRAMS := muster musterd musterctl

# The linter is a tool, not a part of the product: it stays out of go.mod.
LINT_VERSION := v2.15.0
LINT := .cache/golangci-lint-$(LINT_VERSION)/golangci-lint
SCRIPTS := .ci/run .ci/dist $(addprefix examples/lab/,up down image require judge engine ansible/certificates $(addprefix kubernetes/usr/local/lib/lab/,prepare runc))

BENCH ?= .
BENCHFLAGS ?=
FUZZTIME ?= 1m
TESTFLAGS ?=
ROUNDS ?= 20
SEEDS ?= 50
REQUESTS ?= 1000000
HISTORY ?= 100000
HOSTS ?= 50,125,250,500
INVENTORIES ?= 10,25,50,100
TAGS ?=

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build muster, musterd and musterctl into bin/
	@mkdir -p bin
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS:%=./cmd/%)

test: setup test-unit test-lab ## run every test; installs what they need (root or sudo, Debian)

setup: ## install what the tests need, Docker's engine included
	examples/lab/require git:git systemd-analyze:systemd ss:iproute2 ssh:openssh-client \
	  ssh-keygen:openssh-client etcdctl:etcd-client docker:docker.io dockerd:docker.io \
	  debootstrap:debootstrap iptables:iptables
	examples/lab/judge

test-unit: ## run the tests that need neither root nor Docker
	$(GO) vet ./...
	$(GO) test -timeout 20m $(TESTFLAGS) ./...

test-race: ## run the same tests under the race detector
	examples/lab/require gcc:build-essential
	CGO_ENABLED=1 $(GO) test -race -timeout 40m $(TESTFLAGS) ./...

test-faults: ## kill and stop leaders ROUNDS (20) times under load; TAGS=plant_... must fail
	$(GO) test -count=1 -v -timeout 60m -tags '$(TAGS)' $(TESTFLAGS) ./kvserver/clustertest -rounds $(ROUNDS)
	$(GO) test -count=1 -timeout 20m -tags '$(TAGS)' $(TESTFLAGS) ./kvserver/replica

test-fleet: ## apply 50, 125, 250 and 500 practice hosts in one run each; time, memory, every step (an hour, 15 GB)
	$(GO) test -count=1 -timeout 3h -v -run 'TestFleet$$' ./cmd/muster -hosts $(HOSTS) -inventories $(INVENTORIES) $(TESTFLAGS)

test-differential: ## make the same REQUESTS (1000000) over SEEDS (50) of etcd and musterd, and compare
	$(GO) test -count=1 -v -timeout 4h $(TESTFLAGS) ./kvserver/difftest -seeds $(SEEDS) -requests $(REQUESTS) -history $(HISTORY)
	$(GO) test -count=1 -v -timeout 1h $(TESTFLAGS) ./kvserver/v2api -v2api.seeds $(SEEDS) -v2api.requests 5000

test-lab: build ## install a cluster on three systemd hosts in containers, and break it
	$(GO) test -count=1 -tags lab,grpcnotrace -timeout 15m -v $(TESTFLAGS) -run TestLab ./examples/lab

test-lifecycle: build ## take a cluster on five hosts through everything that happens to one, under load
	$(GO) test -count=1 -tags lab,grpcnotrace -timeout 30m -v $(TESTFLAGS) -run TestLifecycle ./examples/lab

test-kubernetes: ## build Kubernetes, compare it on musterd and on etcd, run etcd in its pods (25 minutes and the builds; TESTFLAGS="-nodes 1000 -pods 5000", -without-stacked)
	examples/lab/require docker:docker.io dockerd:docker.io debootstrap:debootstrap iptables:iptables \
	  ssh:openssh-client ssh-keygen:openssh-client openssl:openssl gcc:gcc
	cd examples/kubernetes && $(GO) vet . && $(GO) test -count=1 -timeout 90m -v . $(TESTFLAGS)

lint: $(LINT) ## run golangci-lint (installed into .cache) and shellcheck; compare the README's table
	$(LINT) run ./...
	$(LINT) run --build-tags lab,grpcnotrace ./examples/lab
	examples/lab/require shellcheck:shellcheck
	shellcheck -x -P examples/lab $(SCRIPTS)
	@$(GO) list -m -f '{{if not (or .Main .Indirect)}}`{{.Path}}` | {{.Version}}{{end}}' all | while read -r row; do \
	  grep -qF "| $$row |" README.md || { echo "the README's dependency table lacks: $$row"; exit 1; }; \
	done

$(LINT):
	GOBIN=$(abspath $(@D)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

bench: ## run the benchmarks (BENCH=regexp selects)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

bench-quick: ## compare musterd with etcd on this machine (3 minutes): speed, processor time, memory, restart
	cd kvserver/benchmark && $(GO) run . $(BENCHFLAGS)

bench-provision: build ## time muster apply and an Ansible playbook on the lab's hosts (BENCHFLAGS="-rounds 3")
	examples/lab/require ansible-playbook:ansible openssl:openssl
	$(GO) test -count=1 -tags lab,grpcnotrace -timeout 60m -v -run TestProvisionSpeed ./examples/lab $(BENCHFLAGS)

fuzz: ## run each fuzz target for FUZZTIME (1m)
	@for package in $$($(GO) list ./...); do \
	  tests=$$($(GO) test -list '^Fuzz' $$package); \
	  for target in $$(grep '^Fuzz' <<<"$$tests" || true); do \
	    echo "$$package $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
	  done; \
	done

man: build ## write the manual pages into bin/man
	bin/muster man bin/man

dist: ## make the release archives and their checksums in dist/
	.ci/dist $(VERSION)

clean: ## remove what build, dist and lint made
	rm -rf bin dist .cache

.NOTPARALLEL:
.PHONY: help build test setup test-unit test-race test-faults test-fleet test-differential test-lab test-lifecycle test-kubernetes lint bench bench-quick bench-provision fuzz man dist clean
