// SPDX-License-Identifier: GPL-2.0

//! debugfs: what each guest's memory is, in text and as digests.
//!
//! `Documentation/export.rst` has the formats. Everything is put together in kernel memory under
//! the mutex and copied to the reader without it: a reader's page fault must not hold up the rest.

use super::{
    shared::Shared,
    state::DIGEST_BUDGET, //
};
use crate::engine::{
    digests::Asked,
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
        BLOCK_PAGES,
        PAGE_BYTES, //
    },
};
use crate::sys::debugfs::Dir;
use kernel::{
    alloc::KVVec,
    debugfs::{
        BinaryWriter,
        Writer, //
    },
    fmt,
    fs::file,
    prelude::*,
    str::CString,
    sync::Arc,
    uaccess::UserSliceWriter, //
};

/// Records that one `read` gives at most: 32 KiB.
const RECORDS_A_READ: u64 = BLOCK_PAGES as u64;

/// The bytes of some records.
type Records = KVVec<[u8; RECORD_BYTES]>;

/// The debugfs files of one guest; dropping them waits for readers.
pub(crate) struct Export {
    id: GuestId,
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
    pub(crate) fn new(root: &Arc<Dir>, shared: Arc<Shared>, id: GuestId) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("{}", id.0))?;
        let mut dir = Dir::subdir(root, &name);
        let view = || View {
            shared: shared.clone(),
            id,
        };
        dir.add_text(c"stats", Stats(view()))?;
        dir.add_text(c"slots", Slots(view()))?;
        dir.add_binary(c"digests", Digests(view()))?;
        Ok(Self { id, _dir: dir })
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
        // Without memory the slots as of the last pass are shown.
        let _ = shared.refresh(*id);
        let state = shared.state.lock();
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
        let written = match at.checked_sub(HEADER_BYTES as u64) {
            None => writer.write_slice_partial(&self.header()?.encode(), at as usize)?,
            Some(beyond) => {
                let first = beyond / RECORD_BYTES as u64;
                let skip = beyond as usize % RECORD_BYTES;
                let wanted = writer.len().saturating_add(skip).div_ceil(RECORD_BYTES) as u64;
                let records = self.records(first, wanted.min(RECORDS_A_READ))?;
                writer.write_slice_partial(records.as_flattened(), skip)?
            }
        };
        *offset += written as file::Offset;
        Ok(written)
    }
}

impl Digests {
    fn header(&self) -> Result<Header> {
        let View { shared, id } = &self.0;
        // The last layout must not pass for the present one while the index forgets what is gone.
        shared.refresh(*id)?;
        let state = shared.state.lock();
        let guest = state.guest(*id).ok_or(ENOENT)?;
        Ok(Header {
            id: id.0,
            domain: guest.domain().number(),
            records: guest.layout().pages(),
            layout: guest.layout().version(),
        })
    }

    /// Up to `most` records from number `first` on.
    fn records(&self, first: u64, most: u64) -> Result<Records> {
        let mut records = Records::with_capacity(most as usize, GFP_KERNEL)?;
        // When digests are missing, no more pages are looked at than can be told at once.
        let mut at_once = RECORDS_A_READ;
        while (records.len() as u64) < most {
            let whole = records.len();
            let asked = at_once.min(most - whole as u64);
            match self.append(first.saturating_add(whole as u64), asked, &mut records) {
                Ok(Told::All) => {}
                Ok(Told::Some) => at_once = DIGEST_BUDGET as u64,
                Ok(Told::End) => break,
                Err(error) if error == EAGAIN && !kernel::current!().signal_pending() => {
                    // What was told before the lock was contended is told again.
                    records.truncate(whole);
                    kernel::time::delay::fsleep(kernel::time::Delta::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Appends up to `most` records from number `first` on, as many as can be told at once: of
    /// pages that lie next to one another in memory, within one block.
    fn append(&self, first: u64, most: u64, records: &mut Records) -> Result<Told> {
        let View { shared, id } = &self.0;
        let mut state = shared.state.lock();
        let layout = state.guest(*id).ok_or(ENOENT)?.layout();
        let Some(page) = layout.page(first) else {
            return Ok(Told::End);
        };
        let in_block = (BLOCK_BYTES - page.addr % BLOCK_BYTES) / PAGE_BYTES;
        let asked = Asked {
            guest: *id,
            addr: page.addr,
            pages: layout.run(first).min(in_block).min(most) as usize,
            digests: DIGEST_BUDGET,
        };
        let mut gfn = page.gfn;
        let told = state.page_states(asked, |state| {
            // The caller has made room for all of them.
            let _ = records.push_within_capacity(Record { gfn, state }.encode());
            gfn += 1;
        })?;
        Ok(match told == asked.pages {
            true => Told::All,
            false => Told::Some,
        })
    }
}

/// Which of the records that were asked for there are.
enum Told {
    /// All that lie in one piece.
    All,
    /// Fewer, as digests are missing.
    Some,
    /// None: these are no pages.
    End,
}
