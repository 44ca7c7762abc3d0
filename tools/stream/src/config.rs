// SPDX-License-Identifier: GPL-2.0

//! The configuration at the head of a stream: the machine's name, then subsections.
//!
//! ```text
//! be32 n, n bytes: the machine's name
//! any number of:  u8 5, u8 n, n bytes: name, be32 version, then by name
//!     configuration/target-page-bits   be32 bits
//!     configuration/capabilities       be32 n, n names of u8 n, n bytes
//!     configuration/uuid               16 bytes
//! ```
//!
//! The first byte that is not 5 is the type of the first section. Nothing says how long a subsection
//! is, so after the name of an unknown one nothing can be told apart.

use crate::field::{
    be32,
    byte,
    name,
    name_length,
    Flow,
    Machine,
    Need, //
};
use crate::reason::Reason;

/// The byte that starts a subsection.
const SUBSECTION: u8 = 5;
/// More capabilities than QEMU will ever have.
const MOST_CAPABILITIES: u32 = 256;
/// Longest name of a machine, so that it fits into a field.
const MACHINE_BYTES: u32 = 255;
/// The one size of target pages that is handled, in bits.
const PAGE_BITS: u32 = 12;

/// Reads it. The field with which it is done is the type of the first section.
#[derive(Debug)]
pub(crate) struct Config {
    /// What comes next.
    state: State,
    /// Are blocks listed with their addresses, because some may be shared instead of sent?
    pub(crate) ignore_shared: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum State {
    /// The length of the machine's name.
    MachineLength,
    /// The machine's name.
    Machine(usize),
    /// A subsection or the type of a section.
    Next,
    /// The length of a subsection's name.
    NameLength,
    /// A subsection's name and version.
    Name(usize),
    /// Bits of a target page.
    PageBits,
    /// The number of capabilities.
    Capabilities,
    /// The length of a capability's name; so many are left.
    CapabilityLength(u32),
    /// A capability's name; so many are left with it.
    Capability(u32, usize),
    /// The machine's UUID.
    Uuid,
}

impl Config {
    /// Before its first byte.
    pub(crate) fn new() -> Self {
        Self {
            state: State::MachineLength,
            ignore_shared: false,
        }
    }

    /// The fields of the subsection `name`.
    fn subsection(name: &str) -> Result<State, Reason> {
        match name {
            "configuration/target-page-bits" => Ok(State::PageBits),
            "configuration/capabilities" => Ok(State::Capabilities),
            "configuration/uuid" => Ok(State::Uuid),
            _ => Err(Reason::UnknownSubsection),
        }
    }

    /// After a capability, `left` are left.
    fn capability(left: u32) -> State {
        match left {
            0 => State::Next,
            left => State::CapabilityLength(left),
        }
    }
}

impl Machine for Config {
    fn need(&self) -> Need {
        Need::Field(match self.state {
            State::MachineLength | State::PageBits | State::Capabilities => 4,
            State::Next | State::NameLength | State::CapabilityLength(_) => 1,
            State::Machine(length) | State::Capability(_, length) => length,
            State::Name(length) => length + 4,
            State::Uuid => 16,
        })
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        self.state = match self.state {
            State::MachineLength => match be32(field, 0) {
                // CAST: It is at most 255.
                length @ 1..=MACHINE_BYTES => State::Machine(length as usize),
                length => return Err(Reason::BadLength(length)),
            },
            State::Machine(_) => name(field).map(|_| State::Next)?,
            State::Next if byte(field, 0) == SUBSECTION => State::NameLength,
            State::Next => return Ok(Flow::Done),
            State::NameLength => State::Name(name_length(field, 0)?),
            State::Name(length) => Self::subsection(name(field.get(..length).unwrap_or(&[]))?)?,
            State::PageBits => match be32(field, 0) {
                PAGE_BITS => State::Next,
                bits => return Err(Reason::PageBits(bits)),
            },
            State::Capabilities => match be32(field, 0) {
                count @ ..=MOST_CAPABILITIES => Self::capability(count),
                count => return Err(Reason::BadLength(count)),
            },
            State::CapabilityLength(left) => State::Capability(left, name_length(field, 0)?),
            State::Capability(left, _) => {
                match name(field)? {
                    "mapped-ram" => return Err(Reason::MappedRam),
                    "x-ignore-shared" => self.ignore_shared = true,
                    _ => {}
                }
                Self::capability(left.saturating_sub(1))
            }
            State::Uuid => State::Next,
        };
        Ok(Flow::More)
    }

    fn passed(&mut self) -> Flow {
        Flow::More
    }
}
