// SPDX-License-Identifier: GPL-2.0

//! Guest code that keeps a counter in each page and never believes that it is still there.
//!
//! The first word of each data page holds a counter; the last holds a constant. The guest's program
//! goes over all pages: it compares both with what it remembers elsewhere, and on a writing sweep
//! counts on. After each sweep it hands over to the host, which so paces the guest.

use kvm_ioctls::{
    VcpuExit,
    VcpuFd, //
};

use crate::{
    Backing,
    Error,
    Memory,
    Slot,
    Vm,
    WORDS, //
};

/// Where the program is, what it is told, what it remembers and what it counts in: guest addresses.
const PROGRAM: usize = 0x1000;
const CONTROL: usize = 0x2000;
const REMEMBERED: usize = 0x1_0000;
const DATA: usize = 0x10_0000;

/// The most data pages whose counters fit below [`DATA`].
const DATA_PAGES_MAX: usize = (DATA - REMEMBERED) / 4;

/// Ports by which the program says that a sweep is over, or that a page is wrong.
const PORT_DONE: u16 = 0x10;
const PORT_LOST: u16 = 0x11;

/// The last word of every data page, as the guest sees it (32 bits).
const CONSTANT: u32 = 0x5457_5047;

/// The program: 32-bit code, flat segments, no paging.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0xbd, 0x00, 0x20, 0x00, 0x00,       //        mov  $CONTROL, %ebp
    0x8b, 0x5d, 0x00,                   // sweep: mov  0(%ebp), %ebx      page
    0x8b, 0x4d, 0x04,                   //        mov  4(%ebp), %ecx      pages to go
    0x8b, 0x75, 0x08,                   //        mov  8(%ebp), %esi      remembered counter
    0x8b, 0x7d, 0x0c,                   //        mov  12(%ebp), %edi     write?
    0x8b, 0x03,                         // page:  mov  (%ebx), %eax
    0x3b, 0x06,                         //        cmp  (%esi), %eax
    0x75, 0x24,                         //        jne  lost
    0x8b, 0x93, 0xfc, 0x0f, 0x00, 0x00, //        mov  0xffc(%ebx), %edx
    0x3b, 0x55, 0x10,                   //        cmp  16(%ebp), %edx
    0x75, 0x19,                         //        jne  lost
    0x85, 0xff,                         //        test %edi, %edi
    0x74, 0x05,                         //        jz   next
    0x40,                               //        inc  %eax
    0x89, 0x03,                         //        mov  %eax, (%ebx)
    0x89, 0x06,                         //        mov  %eax, (%esi)
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, // next:  add  $4096, %ebx
    0x83, 0xc6, 0x04,                   //        add  $4, %esi
    0x49,                               //        dec  %ecx
    0x75, 0xda,                         //        jnz  page
    0xe6, 0x10,                         //        out  %al, $PORT_DONE
    0xeb, 0xca,                         //        jmp  sweep
    0xe6, 0x11,                         // lost:  out  %al, $PORT_LOST
    0xeb, 0xc6,                         //        jmp  sweep
];

/// What a sweep does after checking a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Nothing.
    Read,
    /// Counts on.
    Write,
}

/// A page in which the guest did not find what it had written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The data page.
    pub page: usize,
    /// The counter the guest remembers.
    pub expected: u32,
    /// The counter it saw.
    pub seen: u32,
    /// The last word it saw, if it got that far.
    pub constant: u32,
}

/// A VM that runs the program over its data pages.
///
/// Data pages with the same `kind` are equal whenever a sweep is over, so they can merge.
pub struct Counter {
    processor: VcpuFd,
    vm: Vm,
    memory: Memory,
    pages: usize,
}

impl Counter {
    /// Makes a VM with `pages` data pages; `kind` names the content of each.
    ///
    /// # Errors
    ///
    /// KVM's, or no memory.
    ///
    /// # Panics
    ///
    /// When there are more pages than counters to remember.
    pub fn new(
        pages: usize,
        backing: Backing,
        kind: impl Fn(usize) -> u64,
    ) -> Result<Counter, Error> {
        assert!((1..=DATA_PAGES_MAX).contains(&pages), "{pages} pages");
        let memory = Memory::new(DATA / crate::PAGE_BYTES + pages, backing)?;
        let vm = Vm::new()?;
        vm.set_slot(Slot {
            host: memory.address(),
            pages: memory.pages(),
            ..Slot::default()
        })?;
        let processor = vm.processor()?;
        let counter = Counter {
            processor,
            vm,
            memory,
            pages,
        };
        counter.load(kind);
        counter.start()?;
        Ok(counter)
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// All of its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Which page of [`Counter::memory`] the first data page is.
    pub fn first_page(&self) -> usize {
        DATA / crate::PAGE_BYTES
    }

    /// Goes over all pages once.
    ///
    /// # Errors
    ///
    /// KVM's, or an exit that the program never causes.
    pub fn sweep(&mut self, sweep: Sweep) -> Result<Result<(), Lost>, Error> {
        self.set(CONTROL + 12, u32::from(sweep == Sweep::Write));
        loop {
            match self.processor.run() {
                Ok(VcpuExit::IoOut(PORT_DONE, _)) => return Ok(Ok(())),
                Ok(VcpuExit::IoOut(PORT_LOST, _)) => return Ok(Err(self.lost()?)),
                // A page that must be faulted in with a signal pending, or a stop of the process.
                Ok(VcpuExit::Intr) => {}
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
                Ok(other) => return Err(Error::Exit(format!("{other:?}"))),
                Err(source) => {
                    return Err(Error::Kvm {
                        what: "run the guest",
                        source,
                    })
                }
            }
        }
    }

    /// Compares every counter that the guest remembers with its page, from the host's side.
    ///
    /// # Errors
    ///
    /// The first page that differs.
    pub fn audit(&self) -> Result<(), Lost> {
        for page in 0..self.pages {
            let expected = self.get(REMEMBERED + 4 * page);
            let seen = self.get(DATA + page * crate::PAGE_BYTES);
            let constant = self.get(DATA + page * crate::PAGE_BYTES + 0xffc);
            if seen != expected || constant != CONSTANT {
                return Err(Lost {
                    page,
                    expected,
                    seen,
                    constant,
                });
            }
        }
        Ok(())
    }

    fn load(&self, kind: impl Fn(usize) -> u64) {
        for (index, &byte) in CODE.iter().enumerate() {
            let at = PROGRAM + index;
            let shift = at % 4 * 8;
            let word = self.get(at / 4 * 4) & !(0xff << shift);
            self.set(at / 4 * 4, word | (u32::from(byte) << shift));
        }
        let control = [
            DATA as u32,
            self.pages as u32,
            REMEMBERED as u32,
            0,
            CONSTANT,
        ];
        for (index, value) in control.into_iter().enumerate() {
            self.set(CONTROL + 4 * index, value);
        }
        for page in 0..self.pages {
            let kind = kind(page);
            let mut content = [0; WORDS];
            content[1..].fill(kind);
            content[WORDS - 1] = (u64::from(CONSTANT) << 32) | kind & 0xffff_ffff;
            self.memory.write_page(self.first_page() + page, &content);
        }
    }

    fn start(&self) -> Result<(), Error> {
        let mut special = self
            .processor
            .get_sregs()
            .map_err(Error::kvm("read the segments"))?;
        for segment in [
            &mut special.cs,
            &mut special.ds,
            &mut special.es,
            &mut special.ss,
        ] {
            segment.base = 0;
            segment.limit = u32::MAX;
            segment.g = 1;
            segment.db = 1;
            segment.s = 1;
            segment.present = 1;
            segment.selector = 0x10;
            segment.type_ = 3;
        }
        special.cs.selector = 8;
        special.cs.type_ = 11;
        special.cr0 |= 1;
        self.processor
            .set_sregs(&special)
            .map_err(Error::kvm("set the segments"))?;
        let mut registers = self
            .processor
            .get_regs()
            .map_err(Error::kvm("read the registers"))?;
        registers.rip = PROGRAM as u64;
        registers.rflags = 2;
        self.processor
            .set_regs(&registers)
            .map_err(Error::kvm("set the registers"))
    }

    fn lost(&self) -> Result<Lost, Error> {
        let registers = self
            .processor
            .get_regs()
            .map_err(Error::kvm("read the registers"))?;
        let page = (registers.rbx as usize).wrapping_sub(DATA) / crate::PAGE_BYTES;
        Ok(Lost {
            page,
            expected: self.get(registers.rsi as usize),
            seen: registers.rax as u32,
            constant: registers.rdx as u32,
        })
    }

    fn get(&self, guest: usize) -> u32 {
        let word = self.memory.word(guest / 4096, guest % 4096 / 8);
        (word >> (guest % 8 / 4 * 32)) as u32
    }

    fn set(&self, guest: usize, value: u32) {
        let (page, index, shift) = (guest / 4096, guest % 4096 / 8, guest % 8 / 4 * 32);
        let word = self.memory.word(page, index) & !(0xffff_ffff << shift);
        self.memory
            .set_word(page, index, word | (u64::from(value) << shift));
    }
}
