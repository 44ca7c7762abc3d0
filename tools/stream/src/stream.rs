// SPDX-License-Identifier: GPL-2.0

//! The main channel: header, configuration, sections and commands.

use crate::blocks::Extras;
use crate::command::{
    Command,
    ADVISE_BYTES,
    COMMAND_BYTES,
    MOST_PACKAGED,
    PACKAGED_BYTES, //
};
use crate::config::Config;
use crate::field::{
    be16,
    be32,
    be64,
    byte,
    name,
    name_length,
    Flow,
    Machine,
    Need, //
};
use crate::output::Output;
use crate::payload::Payload;
use crate::piece::Mark;
use crate::ram::Ram;
use crate::reason::Reason;
use crate::sections::{
    Content,
    Sections,
    Type, //
};

/// The first word of the channel, "QEVM".
pub(crate) const MAGIC: u32 = 0x5145_564d;
/// The one version there is.
const VERSION: u32 = 3;
/// The end of the state.
const EOF: u8 = 0;
/// A configuration follows.
const CONFIGURATION: u8 = 7;
/// A command follows.
const COMMAND: u8 = 8;
/// The end of a section.
const FOOTER: u8 = 0x7e;
/// Bytes of a footer.
const FOOTER_BYTES: usize = 5;
/// Bytes of instance and version, after a section's name.
const NAMED_BYTES: usize = 8;

/// Reads it.
#[derive(Debug)]
pub(crate) struct Stream {
    /// What comes next.
    state: State,
    /// The section that is being read.
    section: Section,
    /// The sections that were started.
    sections: Sections,
    /// The records of RAM.
    ram: Ram,
    /// What the list of blocks may have in it.
    extras: Extras,
    /// How far the migration has come.
    phase: Phase,
    /// The name of the section that was started last.
    last_name: String,
}

/// The section that is being read.
#[derive(Clone, Copy, Debug)]
struct Section {
    /// How it starts.
    kind: Type,
    /// Its number.
    id: u32,
}

/// How far the migration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Iterables are set up.
    Setup,
    /// RAM has been sent.
    Live,
    /// The guest stands still, or will run at the destination.
    Handover,
}

/// What comes next.
#[derive(Debug)]
enum State {
    /// The version, after the magic.
    Version,
    /// The byte that starts the configuration.
    Configuration,
    /// The configuration.
    Config(Config),
    /// The type of a section.
    Type,
    /// Number and length of the name of a section that starts.
    Head,
    /// Name, instance and version of a section that starts.
    Name(usize),
    /// The number of a section that goes on.
    Number,
    /// RAM.
    Ram,
    /// The content of another section.
    Other(Payload),
    /// The end of a section.
    Footer,
    /// Number and length of a command.
    Command,
    /// The advice of postcopy.
    Advise,
    /// The length of a package.
    Packaged,
    /// So many bytes until the next section.
    Skip(u32),
    /// Nothing.
    Ended,
}

impl Stream {
    /// After its magic.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Version,
            section: Section {
                kind: Type::Full,
                id: 0,
            },
            sections: Sections::default(),
            ram: Ram::default(),
            extras: Extras::default(),
            phase: Phase::Setup,
            last_name: String::new(),
        }
    }

    /// The name of the section that was started last.
    pub(crate) fn section(&self) -> &str {
        &self.last_name
    }

    /// What it wants next.
    #[inline]
    pub(crate) fn need(&self) -> Need {
        match &self.state {
            State::Ram => self.ram.need(),
            State::Version | State::Number => Need::Field(4),
            State::Configuration | State::Type => Need::Field(1),
            State::Config(config) => config.need(),
            State::Head | State::Footer => Need::Field(FOOTER_BYTES),
            State::Name(length) => Need::Field(length + NAMED_BYTES),
            State::Other(payload) => payload.need(),
            State::Command => Need::Field(COMMAND_BYTES),
            State::Advise => Need::Field(ADVISE_BYTES),
            State::Packaged => Need::Field(PACKAGED_BYTES),
            State::Skip(bytes) => Need::Skip((*bytes).into()),
            State::Ended => Need::Rest,
        }
    }

    /// Reads the records of RAM at the head of `bytes` that are simple.
    #[inline]
    pub(crate) fn run(&self, bytes: &[u8], output: &mut Output<'_>) -> usize {
        match self.state {
            State::Ram => self.ram.run(bytes, output),
            _ => 0,
        }
    }

    /// Takes the field that it wanted.
    ///
    /// # Errors
    ///
    /// The field is not understood.
    pub(crate) fn take(&mut self, field: &[u8], output: &mut Output<'_>) -> Result<Flow, Reason> {
        self.state = match &mut self.state {
            State::Ram => match self.ram.take(field, self.extras, output)? {
                Flow::Done => State::Footer,
                flow => return Ok(flow),
            },
            State::Other(payload) => match payload.take(field)? {
                Flow::Done => State::Footer,
                flow => return Ok(flow),
            },
            State::Config(config) => match config.take(field)? {
                Flow::Done => {
                    self.extras.addresses = config.ignore_shared;
                    self.section_type(byte(field, 0), output)?
                }
                flow => return Ok(flow),
            },
            State::Version => match be32(field, 0) {
                VERSION => State::Configuration,
                version => return Err(Reason::Version(version)),
            },
            State::Configuration => match byte(field, 0) {
                CONFIGURATION => State::Config(Config::new()),
                other => return Err(Reason::NoConfiguration(other)),
            },
            State::Type => self.section_type(byte(field, 0), output)?,
            State::Head => {
                self.section.id = be32(field, 0);
                State::Name(name_length(field, 4)?)
            }
            State::Name(length) => {
                let length = *length;
                self.start(field, length)?
            }
            State::Number => self.go_on(be32(field, 0), output)?,
            State::Footer => self.footer(field, output)?,
            State::Command => self.command(Command::new(be16(field, 0), be16(field, 2))?, output),
            State::Advise => {
                self.extras.page_sizes = be64(field, 0);
                State::Type
            }
            State::Packaged => match be32(field, 0) {
                length @ ..=MOST_PACKAGED => {
                    self.hand_over(output);
                    output.mark(Mark::Packaged);
                    State::Skip(length)
                }
                length => return Err(Reason::BadLength(length)),
            },
            State::Skip(_) | State::Ended => return Ok(Flow::More),
        };
        Ok(Flow::More)
    }

    /// What it wanted to skip, or a page, is over.
    pub(crate) fn passed(&mut self) {
        match &mut self.state {
            State::Ram => self.ram.passed(),
            State::Other(payload) => {
                if payload.passed() == Flow::Done {
                    self.state = State::Footer;
                }
            }
            _ => self.state = State::Type,
        }
    }

    /// A section of type `byte` begins.
    fn section_type(&mut self, byte: u8, output: &mut Output<'_>) -> Result<State, Reason> {
        self.section.kind = match byte {
            COMMAND => return Ok(State::Command),
            1 => Type::Start,
            2 => Type::Part,
            3 => Type::End,
            // The state of devices, without an end of RAM: a background snapshot.
            4 if self.phase >= Phase::Live => return Ok(Self::end(output)),
            4 => Type::Full,
            EOF => return Ok(Self::end(output)),
            other => return Err(Reason::SectionType(other)),
        };
        Ok(match self.section.kind {
            Type::Start | Type::Full => State::Head,
            Type::Part | Type::End => State::Number,
        })
    }

    /// A section with a name of `length` bytes starts.
    fn start(&mut self, field: &[u8], length: usize) -> Result<State, Reason> {
        let (name_bytes, rest) = field.split_at_checked(length).unwrap_or((field, &[]));
        let name = name(name_bytes)?;
        self.last_name.clear();
        self.last_name.push_str(name);
        let Section { kind, id } = self.section;
        let content = self.sections.start(id, name, be32(rest, 4), kind)?;
        Ok(Self::enter(content))
    }

    /// The section `id` goes on.
    fn go_on(&mut self, id: u32, output: &mut Output<'_>) -> Result<State, Reason> {
        self.section.id = id;
        let content = self.sections.find(id)?;
        if content == Content::Ram {
            self.phase = self.phase.max(Phase::Live);
        }
        if self.section.kind == Type::End {
            self.hand_over(output);
        }
        Ok(Self::enter(content))
    }

    /// What comes first of `content`.
    fn enter(content: Content) -> State {
        match content {
            Content::Ram => State::Ram,
            Content::Other(kind) => State::Other(Payload::new(kind)),
        }
    }

    /// A section ends.
    fn footer(&mut self, field: &[u8], output: &mut Output<'_>) -> Result<State, Reason> {
        let Section { kind, id } = self.section;
        if byte(field, 0) != FOOTER || be32(field, 1) != id {
            return Err(Reason::NoFooter);
        }
        if self.sections.find(id)? == Content::Ram {
            output.mark(Mark::RamSection);
            if kind == Type::End {
                output.mark(Mark::RamEnd);
                return Ok(Self::end(output));
            }
        }
        Ok(State::Type)
    }

    /// What follows a command.
    fn command(&mut self, command: Command, output: &mut Output<'_>) -> State {
        match command {
            Command::ReturnPath => output.mark(Mark::ReturnPath),
            Command::Switchover => self.hand_over(output),
            Command::Advise => return State::Advise,
            Command::Packaged => return State::Packaged,
            Command::Discard(length) => {
                self.hand_over(output);
                return State::Skip(length.into());
            }
            Command::Nothing(length) => return State::Skip(length.into()),
        }
        State::Type
    }

    /// The guest stands still; said once.
    fn hand_over(&mut self, output: &mut Output<'_>) {
        if self.phase < Phase::Handover {
            self.phase = Phase::Handover;
            output.mark(Mark::Switchover);
        }
    }

    /// No page follows.
    fn end(output: &mut Output<'_>) -> State {
        output.mark(Mark::Ended);
        State::Ended
    }
}
