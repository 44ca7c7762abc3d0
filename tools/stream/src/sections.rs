// SPDX-License-Identifier: GPL-2.0

//! Which sections were started, by number.

use crate::payload::Kind;
use crate::reason::Reason;

/// More sections than come before RAM has ended.
const MOST_SECTIONS: usize = 1024;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// RAM.
    Ram,
    /// Something else of known form.
    Other(Kind),
}

/// How a section starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// The first part of several.
    Start,
    /// A further part.
    Part,
    /// The last part.
    End,
    /// All at once.
    Full,
}

/// The sections that were started.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    /// Number and content of each; there are a few.
    started: Vec<(u32, Content)>,
}

/// The version of the section of RAM.
const RAM_VERSION: u32 = 4;

impl Sections {
    /// Starts section `id`, called `name`.
    ///
    /// # Errors
    ///
    /// The number is taken, or what it holds is unknown.
    pub(crate) fn start(
        &mut self,
        id: u32,
        name: &str,
        version: u32,
        kind: Type,
    ) -> Result<Content, Reason> {
        let content = match (name, kind) {
            ("ram", Type::Start) if version == RAM_VERSION => Content::Ram,
            ("ram", Type::Start) => return Err(Reason::SectionVersion(version)),
            _ => Content::Other(Kind::of(name, version, kind)?),
        };
        let taken = self
            .started
            .iter()
            .any(|(started, held)| *started == id || (content == Content::Ram && *held == content));
        if taken || self.started.len() >= MOST_SECTIONS {
            return Err(Reason::SectionNumber(id));
        }
        self.started.push((id, content));
        Ok(content)
    }

    /// What section `id` holds.
    ///
    /// # Errors
    ///
    /// It was not started.
    pub(crate) fn find(&self, id: u32) -> Result<Content, Reason> {
        let found = self.started.iter().find(|(started, _)| *started == id);
        found
            .map(|(_, content)| *content)
            .ok_or(Reason::NoSuchSection(id))
    }
}
