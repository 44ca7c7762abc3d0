// SPDX-License-Identifier: GPL-2.0

//! Sections other than RAM that may come before RAM has ended. Each says itself where it ends; they
//! are read for that alone.

mod attributes;
mod bitmap;
mod device;
mod hash_table;
mod memory;

use crate::field::{
    Flow,
    Machine,
    Need, //
};
use crate::reason::Reason;
use crate::sections::Type;

/// A kind of section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Dirty bitmaps of disks.
    Bitmap,
    /// A passed-through device (VFIO).
    Device,
    /// The hash table of a POWER machine.
    HashTable,
    /// Attributes of pages of an s390 machine.
    Attributes,
    /// How much of a virtio-mem device is plugged.
    Memory,
}

impl Kind {
    /// The kind of the section `name`.
    ///
    /// # Errors
    ///
    /// There is none, or it has another version.
    pub(crate) fn of(name: &str, version: u32, kind: Type) -> Result<Self, Reason> {
        let (found, known) = match (name, kind) {
            ("dirty-bitmap", Type::Start) => (Self::Bitmap, 1),
            ("spapr/htab", Type::Start) => (Self::HashTable, 1),
            ("s390-stattrib", Type::Start) => (Self::Attributes, 0),
            // Both belong to a device, whose path is before the name.
            (_, Type::Start) if name.ends_with("/vfio") => (Self::Device, 1),
            (_, Type::Full) if name.ends_with("/virtio-mem-device-early") => (Self::Memory, 1),
            _ => return Err(Reason::UnknownSection),
        };
        match version == known {
            true => Ok(found),
            false => Err(Reason::SectionVersion(version)),
        }
    }
}

/// Reads the content of one section.
#[derive(Debug)]
pub(crate) enum Payload {
    /// See [`Kind::Bitmap`].
    Bitmap(bitmap::Bitmap),
    /// See [`Kind::Device`].
    Device(device::Device),
    /// See [`Kind::HashTable`].
    HashTable(hash_table::HashTable),
    /// See [`Kind::Attributes`].
    Attributes(attributes::Attributes),
    /// See [`Kind::Memory`].
    Memory(memory::Memory),
}

impl Payload {
    /// Before the first byte of a section of this kind.
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Bitmap => Self::Bitmap(bitmap::Bitmap::Flags),
            Kind::Device => Self::Device(device::Device::Tag),
            Kind::HashTable => Self::HashTable(hash_table::HashTable::Shift),
            Kind::Attributes => Self::Attributes(attributes::Attributes::Word),
            Kind::Memory => Self::Memory(memory::Memory::Head),
        }
    }

    /// The machine that it is.
    fn machine(&self) -> &dyn Machine {
        match self {
            Self::Bitmap(machine) => machine,
            Self::Device(machine) => machine,
            Self::HashTable(machine) => machine,
            Self::Attributes(machine) => machine,
            Self::Memory(machine) => machine,
        }
    }

    /// The machine that it is.
    fn machine_mut(&mut self) -> &mut dyn Machine {
        match self {
            Self::Bitmap(machine) => machine,
            Self::Device(machine) => machine,
            Self::HashTable(machine) => machine,
            Self::Attributes(machine) => machine,
            Self::Memory(machine) => machine,
        }
    }
}

impl Machine for Payload {
    fn need(&self) -> Need {
        self.machine().need()
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        self.machine_mut().take(field)
    }

    fn passed(&mut self) -> Flow {
        self.machine_mut().passed()
    }
}
