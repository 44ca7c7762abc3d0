// SPDX-License-Identifier: GPL-2.0

//! Twinpage: keeps one copy of pages that are equal in KVM guests.
//!
//! * `engine` decides what to merge; pure, and also compiled by cargo.
//! * `glue` connects it to the kernel; safe code.
//! * `sys` wraps the kernel; the only unsafe code.

#![deny(unsafe_code)]

mod engine;
mod glue;
mod mem;
mod sys;

use glue::{
    control,
    device::Control,
    shared::Shared, //
};
use kernel::{
    alloc::KBox,
    prelude::*,
    sync::Arc, //
};
use sys::{
    ksym::Symbols,
    misc::Device,
    shrinker::Shrinker,
    sysfs::Files,
    thread::Thread,
    vm::Vms, //
};

module! {
    type: Twinpage,
    name: "twinpage",
    authors: ["The Twinpage developers"],
    description: "Shares equal pages between KVM guests",
    license: "GPL",
}

/// The loaded module. Fields go in this order: first nobody can ask for more, then the work stops,
/// then what is known is forgotten. Pages that are merged stay merged, and safely mapped.
struct Twinpage {
    _device: Pin<KBox<Device<Control>>>,
    _files: Files<Shared>,
    _shrinker: Shrinker<Shared>,
    _thread: Thread<Shared>,
    _shared: Farewell,
    _vms: Vms,
}

/// The last look at what the module knows.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl kernel::Module for Twinpage {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let symbols = Symbols::bind()?;
        // Made first, dropped last.
        let vms = Vms::begin()?;
        let shared = Shared::new(symbols)?;
        // Whatever fails below takes down what was made before it.
        let farewell = Farewell(shared.clone());
        let thread = Thread::start(shared.clone())?;
        let shrinker = Shrinker::add(shared.clone())?;
        let files = Files::add(&control::FILES, shared.clone())?;
        let device = KBox::pin_init(
            Device::register(c"twinpage", Arc::new(Control(shared), GFP_KERNEL)?),
            GFP_KERNEL,
        )?;
        Ok(Self {
            _device: device,
            _files: files,
            _shrinker: shrinker,
            _thread: thread,
            _shared: farewell,
            _vms: vms,
        })
    }
}
