// SPDX-License-Identifier: GPL-2.0

//! Guest code that numbers the content of each page and never believes that it is still there.
//!
//! All words of a data page follow from one number, a kind and a count, which the guest remembers
//! elsewhere. The guest's program goes over all pages: it compares every word with what the number
//! says, and where it is to write it counts on and writes the whole page anew. After each sweep it
//! hands over to the host, which so paces the guest.

use std::os::fd::{
    AsRawFd,
    RawFd, //
};
use std::sync::Arc;

use kvm_ioctls::{
    VcpuExit,
    VcpuFd, //
};

use crate::{
    Backing,
    Error,
    Memory,
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

/// Bits of a number that count; the others are the kind.
const COUNT_BITS: u32 = 5;

/// What a page's number is multiplied with to get its first word, and what is added for each
/// further word. Number 0 is a page of zeroes.
const FACTOR: u32 = 0x9e37_79b1;

/// No page has this bit in its number in the guest.
const NEVER: u32 = 1 << 31;

/// The program: 32-bit code, flat segments, no paging, no stack.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0xbd, 0x00, 0x20, 0x00, 0x00,       //        mov  $CONTROL, %ebp
    0x8b, 0x5d, 0x00,                   // sweep: mov  0(%ebp), %ebx      page
    0x8b, 0x4d, 0x04,                   //        mov  4(%ebp), %ecx      pages to go
    0x8b, 0x75, 0x08,                   //        mov  8(%ebp), %esi      its number
    0x69, 0x16, 0xb1, 0x79, 0x37, 0x9e, // page:  imul $FACTOR, (%esi), %edx
    0x31, 0xc0,                         //        xor  %eax, %eax
    0x31, 0xff,                         //        xor  %edi, %edi
    0x01, 0xd0,                         // check: add  %edx, %eax
    0x8b, 0x24, 0x3b,                   //        mov  (%ebx,%edi), %esp
    0x39, 0xc4,                         //        cmp  %eax, %esp
    0x75, 0x51,                         //        jne  lost
    0x83, 0xc7, 0x04,                   //        add  $4, %edi
    0x81, 0xff, 0x00, 0x10, 0x00, 0x00, //        cmp  $4096, %edi
    0x75, 0xec,                         //        jne  check
    0x89, 0xd8,                         //        mov  %ebx, %eax
    0xc1, 0xe8, 0x0c,                   //        shr  $12, %eax
    0x33, 0x45, 0x10,                   //        xor  16(%ebp), %eax     write to those
    0x85, 0x45, 0x0c,                   //        test %eax, 12(%ebp)     of a pattern
    0x75, 0x29,                         //        jnz  next
    0x8b, 0x26,                         //        mov  (%esi), %esp
    0x8d, 0x44, 0x24, 0x01,             //        lea  1(%esp), %eax      count on in
    0x31, 0xe0,                         //        xor  %esp, %eax         the lowest
    0x83, 0xe0, 0x1f,                   //        and  $31, %eax          five bits
    0x31, 0xc4,                         //        xor  %eax, %esp
    0x89, 0x26,                         //        mov  %esp, (%esi)
    0x69, 0xd4, 0xb1, 0x79, 0x37, 0x9e, //        imul $FACTOR, %esp, %edx
    0x31, 0xc0,                         //        xor  %eax, %eax
    0x31, 0xff,                         //        xor  %edi, %edi
    0x01, 0xd0,                         // store: add  %edx, %eax
    0x89, 0x04, 0x3b,                   //        mov  %eax, (%ebx,%edi)
    0x83, 0xc7, 0x04,                   //        add  $4, %edi
    0x81, 0xff, 0x00, 0x10, 0x00, 0x00, //        cmp  $4096, %edi
    0x75, 0xf0,                         //        jne  store
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, // next:  add  $4096, %ebx
    0x83, 0xc6, 0x04,                   //        add  $4, %esi
    0x49,                               //        dec  %ecx
    0x75, 0xa0,                         //        jnz  page
    0xe6, 0x10,                         //        out  %al, $PORT_DONE
    0xeb, 0x93,                         //        jmp  sweep
    0xe6, 0x11,                         // lost:  out  %al, $PORT_LOST
    0xeb, 0x8f,                         //        jmp  sweep
];

/// What a sweep does after checking a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Nothing.
    Read,
    /// Writes it with the next count.
    Write,
    /// Writes one page of each eight; which one, the number says.
    WriteEighth(u32),
}

impl Sweep {
    /// A page is written if its guest page number, with `pattern` flipped, has no bit of `mask`.
    fn mask_and_pattern(self) -> (u32, u32) {
        match self {
            Sweep::Read => (NEVER, NEVER),
            Sweep::Write => (0, 0),
            Sweep::WriteEighth(which) => (7, which),
        }
    }
}

/// A page in which the guest did not find what it had written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The data page.
    pub page: usize,
    /// Its guest page frame number.
    pub gfn: u64,
    /// The first byte that differs.
    pub offset: usize,
    /// The number the guest remembers.
    pub number: u32,
    /// The word that follows from it.
    pub expected: u32,
    /// The word it saw.
    pub seen: u32,
}

impl Lost {
    fn at(address: usize, number: u32, expected: u32, seen: u32) -> Lost {
        Lost {
            page: address.wrapping_sub(DATA) / crate::PAGE_BYTES,
            gfn: (address / crate::PAGE_BYTES) as u64,
            offset: address % crate::PAGE_BYTES,
            number,
            expected,
            seen,
        }
    }
}

/// The words of a page, 32 bits each, that follow from a number.
fn words(number: u32) -> impl Iterator<Item = u32> {
    let step = number.wrapping_mul(FACTOR);
    (1..=1024_u32).map(move |word| word.wrapping_mul(step))
}

/// The content that follows from a number.
pub fn content(number: u32) -> [u64; WORDS] {
    let mut words = words(number);
    std::array::from_fn(|_| {
        let low = words.next().unwrap_or_default();
        u64::from(low) | (u64::from(words.next().unwrap_or_default()) << 32)
    })
}

/// The number of a kind that nobody has written since.
pub fn fresh(kind: u64) -> u32 {
    (kind as u32) << COUNT_BITS
}

/// A VM that runs the program over its data pages.
///
/// Data pages with the same `kind` are equal whenever a sweep is over, so they can merge.
pub struct Counter {
    processor: VcpuFd,
    vm: Arc<Vm>,
    memory: Arc<Memory>,
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
        let memory = Memory::apart(DATA / crate::PAGE_BYTES + pages, backing)?;
        let vm = Vm::over(&memory)?;
        let processor = vm.processor()?;
        let counter = Counter {
            processor,
            vm: Arc::new(vm),
            memory: Arc::new(memory),
            pages,
        };
        counter.load(kind);
        counter.start()?;
        Ok(counter)
    }

    /// The VM, which others may use while a sweep is under way.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// The file of its processor.
    pub fn processor(&self) -> RawFd {
        self.processor.as_raw_fd()
    }

    /// All of its memory; so may this.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Which page of [`Counter::memory`] the first data page is.
    pub fn first_page(&self) -> usize {
        DATA / crate::PAGE_BYTES
    }

    /// How many data pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The number of a data page, as the guest remembers it.
    pub fn number(&self, page: usize) -> u32 {
        self.get(REMEMBERED + 4 * page)
    }

    /// Makes the guest believe that it wrote a data page so, which the caller did or will do.
    pub fn believe(&self, page: usize, number: u32) {
        self.set(REMEMBERED + 4 * page, number);
    }

    /// Goes over all pages once.
    ///
    /// # Errors
    ///
    /// KVM's, or an exit that the program never causes.
    pub fn sweep(&mut self, sweep: Sweep) -> Result<Result<(), Lost>, Error> {
        let (mask, pattern) = sweep.mask_and_pattern();
        self.set(CONTROL + 12, mask);
        self.set(CONTROL + 16, pattern);
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

    /// Compares every page with its number, from the host's side.
    ///
    /// # Errors
    ///
    /// The first page that differs.
    pub fn audit(&self) -> Result<(), Lost> {
        (0..self.pages).try_for_each(|page| self.check(page))
    }

    /// Compares one data page with its number, from the host's side.
    ///
    /// # Errors
    ///
    /// It differs.
    pub fn check(&self, page: usize) -> Result<(), Lost> {
        let number = self.number(page);
        for (word, expected) in words(number).enumerate() {
            let at = DATA + page * crate::PAGE_BYTES + 4 * word;
            let seen = self.get(at);
            if seen != expected {
                return Err(Lost::at(at, number, expected, seen));
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
        let control = [DATA as u32, self.pages as u32, REMEMBERED as u32];
        for (index, value) in control.into_iter().enumerate() {
            self.set(CONTROL + 4 * index, value);
        }
        for page in 0..self.pages {
            let number = fresh(kind(page));
            self.believe(page, number);
            self.memory
                .write_page(self.first_page() + page, &content(number));
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
        let at = registers.rbx.wrapping_add(registers.rdi) as usize;
        let number = self.get(registers.rsi as usize);
        Ok(Lost::at(
            at,
            number,
            registers.rax as u32,
            registers.rsp as u32,
        ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_says_every_word() {
        assert_eq!(content(0), [0; WORDS]);
        let page = content(fresh(5));
        assert_eq!(page[0] as u32, 160_u32.wrapping_mul(FACTOR));
        assert_eq!(
            (page[511] >> 32) as u32,
            (160 * 1024_u32).wrapping_mul(FACTOR)
        );
        assert_ne!(content(fresh(5) + 1), page);
    }

    #[test]
    fn the_program_is_where_it_jumps_to() {
        assert_eq!(CODE.len(), 0x76);
        assert_eq!(CODE[0x05..0x08], [0x8b, 0x5d, 0x00]);
        assert_eq!(CODE[0x72..], [0xe6, 0x11, 0xeb, 0x8f]);
    }
}
