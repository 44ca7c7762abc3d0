// SPDX-License-Identifier: GPL-2.0

//! What other threads have to say, for the one that has the console.

use std::sync::mpsc::{
    sync_channel,
    Receiver,
    SyncSender, //
};

use crate::console::Console;
use crate::error::Error;

/// How many may wait; more are dropped, which a flood deserves.
const WAITING: usize = 64;

/// Where threads put what they have to say.
#[derive(Clone)]
pub struct Speaker(SyncSender<String>);

/// Where it comes out.
pub struct Notices(Receiver<String>);

impl Notices {
    /// Nothing has been said yet.
    pub fn new() -> (Speaker, Self) {
        let (sender, receiver) = sync_channel(WAITING);
        (Speaker(sender), Self(receiver))
    }

    /// Shows what was said since.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn show(&self, console: &mut Console<'_>) -> Result<(), Error> {
        self.0.try_iter().try_for_each(|text| console.warn(&text))
    }
}

impl Speaker {
    /// Says `text`, unless too much waits already.
    pub fn say(&self, text: String) {
        // Nobody listens any more, or a flood: either way it is not worth stopping for.
        let _dropped = self.0.try_send(text);
    }
}
