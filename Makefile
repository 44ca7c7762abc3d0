# SPDX-License-Identifier: GPL-2.0
#
# "make help" lists what can be made. Everything is prepared on first use, in
# a cache outside the checkout (scripts/prepare.sh), and built in build/.

MAKEFLAGS += --no-print-directory
SCRIPTS := $(CURDIR)/scripts

.PHONY: all
all: module

.PHONY: module
ifdef KDIR
# A kernel tree of the user's own, with the machine's own tools.
module:
	@test -e $(KDIR)/rust/libkernel.rmeta || { echo "error: KDIR=$(KDIR) is not\
	 a kernel build tree with Rust metadata (rust/libkernel.rmeta)" >&2; exit 1; }
	@mkdir -p build/custom
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(CURDIR)/build/custom modules
else
module:
	@$(SCRIPTS)/module.sh stock modules
endif

.PHONY: modules-debug
modules-debug:
	@$(SCRIPTS)/module.sh debug modules

.PHONY: tools
tools:
	@$(SCRIPTS)/tools.sh

.PHONY: install install-module
install: tools
	@$(SCRIPTS)/install.sh tools
# Without "module" before it, which would undo a signature.
install-module:
	@$(SCRIPTS)/install.sh module build/$(if $(KDIR),custom,stock)/twinpage.ko

.PHONY: prepare
prepare:
	@$(SCRIPTS)/prepare.sh root peers stock debug kasan initrd >/dev/null

.PHONY: demo
demo:
	@$(SCRIPTS)/demo.sh

.PHONY: demo-migrate bench bench-migrate
demo-migrate:
	@$(SCRIPTS)/demo-migrate.sh
bench:
	@$(SCRIPTS)/bench.sh $(foreach size,$(SIZES),--size $(size)) \
		$(foreach measure,$(ONLY),--only $(measure))
bench-migrate:
	@$(SCRIPTS)/bench-migrate.sh $(if $(ONLY),--only $(ONLY) --keep)

.PHONY: test
test:
	@$(SCRIPTS)/test.sh $(STAGES)

.PHONY: kunit e2e
kunit:
	@$(SCRIPTS)/test.sh kunit
e2e:
	@$(SCRIPTS)/test.sh e2e-stock e2e-debug

.PHONY: mistakes
mistakes:
	@$(SCRIPTS)/mistakes.sh $(MISTAKES)

.PHONY: torture
torture:
	@$(SCRIPTS)/torture.sh $(STAGES)

.PHONY: coverage
coverage:
	@$(SCRIPTS)/coverage.sh

.PHONY: check
check:
	@$(SCRIPTS)/check.sh

.PHONY: clean
clean:
	rm -rf build

.PHONY: help
help:
	@echo 'make                 twinpage.ko for the stock kernel (build/stock/);'
	@echo '                     TWINPAGE_FLAVOUR=deb13-amd64 make: for the one of real machines'
	@echo 'make KDIR=TREE       twinpage.ko for a kernel tree of yours (build/custom/);'
	@echo '                     CC=... or LLVM=1 names the compiler that built it'
	@echo 'make demo            boot a KVM host and three guests, merge, judge'
	@echo 'make demo-migrate    two KVM hosts; a guest moves from one to the other as digests'
	@echo 'make bench           against ksmd; SIZES="PAGES ..." ONLY="MEASURE ..." choose (bench.sh --list)'
	@echo 'make bench-migrate   against QEMU alone; ONLY=WORD,... chooses (bench-migrate.sh --list)'
	@echo 'make test            every test; STAGES="cargo kunit ..." chooses, LANES=1 runs one at a time'
	@echo 'make kunit, make e2e parts of it'
	@echo 'make mistakes        put mistakes in, see the tests fail; MISTAKES="name..." chooses'
	@echo 'make torture         MINUTES=n SEED=n VMS=n QEMUS=n STAGES="kasan ...": what tests do, for long'
	@echo 'make coverage        which lines of the engine and of the module the tests reach'
	@echo 'make check           every static check'
	@echo 'make tools           the twinpage tool and its helpers'
	@echo 'make install         twinpage, manual pages, completions; PREFIX=/usr/local, DESTDIR='
	@echo 'make install-module  twinpage.ko as it was built (KDIR=TREE: for that tree), and depmod'
	@echo 'make modules-debug   twinpage.ko and twinpage_kunit.ko for the debug kernel'
	@echo 'make prepare         only set up what the others need'
	@echo 'make clean           remove build/ (the cache stays)'
