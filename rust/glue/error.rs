// SPDX-License-Identifier: GPL-2.0

//! What the engine's errors are as errno: the only such table.

use crate::engine::{
    index::{
        Refused,
        Untold, //
    },
    knobs::Invalid,
    world::Away, //
};
use kernel::error::{
    code::*,
    Error, //
};

impl From<Invalid> for Error {
    fn from(_: Invalid) -> Self {
        EINVAL
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoMemory => ENOMEM,
            Refused::NoRoom => ENOSPC,
            Refused::Exists => EEXIST,
            Refused::NoGuest => ENOENT,
            Refused::Malformed => EINVAL,
        }
    }
}

impl From<Away> for Error {
    fn from(away: Away) -> Self {
        match away {
            Away::Gone => ESRCH,
            Away::Busy => EAGAIN,
        }
    }
}

impl From<Untold> for Error {
    fn from(untold: Untold) -> Self {
        match untold {
            Untold::NoGuest => ENOENT,
            Untold::Away(away) => away.into(),
            Untold::NoMemory => ENOMEM,
        }
    }
}
