// SPDX-License-Identifier: GPL-2.0

//! debugfs: what each guest's memory is, in text and as digests.
//!
//! `Documentation/export.rst` has the formats. Everything is put together in kernel memory under
//! the mutex and copied to the reader without it: a reader's page fault must not hold up the rest.

use super::shared::Shared;
use crate::engine::{
    stats::Gauge,
    wire::{
        Header,
        Record,
        HEADER_BYTES,
        RECORD_BYTES, //
    },
    world::{
        GuestId,
        BLOCK_BYTES,
        PAGE_BYTES, //
    },
};
use kernel::{
    alloc::{
        KBox,
        KVVec, //
    },
    debugfs::{
        self,
        BinaryWriter,
        Dir,
        Writer, //
    },
    fmt,
    fs::file,
    prelude::*,
    str::CString,
    sync::Arc,
    uaccess::UserSliceWriter, //
};

/// Records that one `read` gives at most.
const RECORDS_A_READ: u64 = 64;

/// The debugfs files of one guest; dropping them waits for readers.
pub(crate) struct Export {
    id: GuestId,
    // Files go before the directory.
    _stats: Pin<KBox<debugfs::File<Stats>>>,
    _slots: Pin<KBox<debugfs::File<Slots>>>,
    _digests: Pin<KBox<debugfs::File<Digests>>>,
    _dir: Dir,
}

/// A guest, as its files see it.
struct View {
    shared: Arc<Shared>,
    id: GuestId,
}

struct Stats(View);
struct Slots(View);
struct Digests(View);

impl Export {
    /// Creates the files of guest `id` under `root`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(root: &Dir, shared: Arc<Shared>, id: GuestId) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("{}", id.0))?;
        let dir = root.subdir(&name);
        let view = || View {
            shared: shared.clone(),
            id,
        };
        let stats = KBox::pin_init(dir.read_only_file(c"stats", Stats(view())), GFP_KERNEL)?;
        let slots = KBox::pin_init(dir.read_only_file(c"slots", Slots(view())), GFP_KERNEL)?;
        let digests = KBox::pin_init(
            dir.read_binary_file(c"digests", Digests(view())),
            GFP_KERNEL,
        )?;
        Ok(Self {
            id,
            _stats: stats,
            _slots: slots,
            _digests: digests,
            _dir: dir,
        })
    }

    /// Whose files they are.
    pub(crate) fn id(&self) -> GuestId {
        self.id
    }
}

impl Writer for Stats {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { shared, id } = &self.0;
        let (pid, domain, stats, restraint) = {
            let mut state = shared.state.lock();
            let (Some(stats), Some(restraint)) = (state.stats(*id), state.restraint(*id)) else {
                return Ok(());
            };
            let guest = state.guest(*id).ok_or(fmt::Error)?;
            let (pid, domain) = (guest.vm().pid(), guest.domain().number());
            (pid, domain, stats, restraint)
        };
        let (gauges, counters) = (&stats.gauges, &stats.counters);
        writeln!(f, "id {}", id.0)?;
        writeln!(f, "pid {pid}")?;
        writeln!(f, "domain {domain}")?;
        writeln!(f, "pages {}", gauges.pages())?;
        for number in 0..Gauge::COUNT {
            if let Some(gauge) = Gauge::from_number(number) {
                match gauge {
                    Gauge::Skip(reason) => write!(f, "skip_{}", reason.name())?,
                    gauge => write!(f, "{}", gauge.name())?,
                }
                writeln!(f, " {}", gauges.get(gauge))?;
            }
        }
        writeln!(f, "pages_scanned {}", counters.scanned)?;
        writeln!(f, "merges {}", counters.merges)?;
        writeln!(f, "breaks {}", counters.breaks)?;
        writeln!(f, "break_rate {}", restraint.rate())?;
        writeln!(f, "backed_off_ms {}", restraint.backed_off_ms())?;
        writeln!(f, "back_offs {}", restraint.times())?;
        writeln!(f, "passes {}", counters.passes)?;
        writeln!(f, "cpu_ns {}", counters.cpu_ns)
    }
}

impl Writer for Slots {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { shared, id } = &self.0;
        writeln!(f, "as_id slot base_gfn npages userspace_addr flags")?;
        let mut state = shared.state.lock();
        // Without memory the slots as of the last pass are shown.
        let _ = state.refresh(*id);
        let Some(guest) = state.guest(*id) else {
            return Ok(());
        };
        for slot in guest.layout().slots() {
            writeln!(
                f,
                "{} {} {} {} {:#x} {:#x}",
                slot.as_id, slot.id, slot.base_gfn, slot.pages, slot.addr, slot.flags
            )?;
        }
        Ok(())
    }
}

impl BinaryWriter for Digests {
    fn write_to_slice(
        &self,
        writer: &mut UserSliceWriter,
        offset: &mut file::Offset,
    ) -> Result<usize> {
        let at = u64::try_from(*offset).map_err(|_| EINVAL)?;
        let mut bytes = KVVec::new();
        let skip = if at < HEADER_BYTES as u64 {
            self.header(&mut bytes)?;
            at as usize
        } else {
            let beyond = at - HEADER_BYTES as u64;
            let wanted = (writer.len() / RECORD_BYTES) as u64 + 2;
            let first = beyond / RECORD_BYTES as u64;
            self.records(first, wanted.min(RECORDS_A_READ), &mut bytes)?;
            (beyond % RECORD_BYTES as u64) as usize
        };
        let written = writer.write_slice_partial(&bytes, skip)?;
        *offset += written as file::Offset;
        Ok(written)
    }
}

impl Digests {
    fn header(&self, bytes: &mut KVVec<u8>) -> Result {
        let View { shared, id } = &self.0;
        let mut state = shared.state.lock();
        state.refresh(*id)?;
        let guest = state.guest(*id).ok_or(ENOENT)?;
        let header = Header {
            id: id.0,
            domain: guest.domain().number(),
            records: guest.layout().pages(),
            layout: guest.layout().version(),
        };
        Ok(bytes.extend_from_slice(&header.encode(), GFP_KERNEL)?)
    }

    /// Appends up to `most` records from number `first` on.
    fn records(&self, first: u64, most: u64, bytes: &mut KVVec<u8>) -> Result {
        let View { shared, id } = &self.0;
        bytes.reserve(most as usize * RECORD_BYTES, GFP_KERNEL)?;
        let mut number = first;
        let end = first.saturating_add(most);
        while number < end {
            let mut state = shared.state.lock();
            let guest = state.guest(*id).ok_or(ENOENT)?;
            let Some(page) = guest.layout().page(number) else {
                break;
            };
            // As many as lie next to one another in memory, within one block.
            let in_block = (BLOCK_BYTES - page.addr % BLOCK_BYTES) / PAGE_BYTES;
            let pages = guest.layout().run(number).min(in_block).min(end - number);
            let mut gfn = page.gfn;
            let told = state.page_states(*id, page.addr, pages as usize, |state| {
                let record = Record { gfn, state };
                // Room was reserved for all of them.
                let _ = bytes.extend_from_slice(&record.encode(), GFP_KERNEL);
                gfn += 1;
            });
            drop(state);
            match told {
                Ok(()) => number += pages,
                Err(error) if error == EAGAIN && !kernel::current!().signal_pending() => {
                    // What was told before the lock was contended is told again.
                    bytes.truncate((number - first) as usize * RECORD_BYTES);
                    kernel::time::delay::fsleep(kernel::time::Delta::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
