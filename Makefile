# The two commands a newcomer needs are `make demo` and `make test`; the rest are their parts.

SHELL := /bin/bash
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/sbin:/sbin

.PHONY: help demo test setup build fmt lint doc bench

help:
	@echo "make demo    two nodes, real pods, policy before and after (root)"
	@echo "make test    everything that is checked: format, lints, tests, docs, dependencies"
	@echo "make setup   install what the two above need; nothing the second time"
	@echo "make build   the release binary, target/release/margay"
	@echo "make fmt | lint | doc | bench   one of them alone"

demo:
	@if [ "$$(id -u)" -ne 0 ]; then echo "make demo needs root: it makes network namespaces and AF_XDP sockets (try: sudo make demo)"; exit 1; fi
	@scripts/setup
	@scripts/demo

test:
	@scripts/setup
	@scripts/kube-assets > /dev/null || if [ $$? -eq 3 ]; then echo "without it the tests against a real API server are skipped, by name"; else echo "without it the tests against a real API server fail"; fi
	@.ci/every

setup:
	@scripts/setup

build: setup
	cargo build --release -p margay

fmt:
	cargo fmt --all

lint doc: setup
	@.ci/$@

bench: setup
	cargo bench -p benches
