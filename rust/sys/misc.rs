// SPDX-License-Identifier: GPL-2.0

//! A character device whose ioctls one object serves.

use core::marker::PhantomData;
use kernel::{
    container_of,
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
    str::CStr,
    sync::Arc, //
};

/// Serves ioctls.
pub(crate) trait Ioctl: Send + Sync + 'static {
    /// Serves one. Process context, may sleep.
    ///
    /// # Errors
    ///
    /// What the caller gets.
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize>;
}

/// The device node exists, mode 0600, until this is dropped.
#[pin_data]
pub(crate) struct Device<T: Ioctl> {
    /// First, so that it is gone before `data` is dropped.
    #[pin]
    registration: MiscDeviceRegistration<Open<T>>,
    data: Arc<T>,
}

/// An open file of the device.
struct Open<T: Ioctl>(PhantomData<T>);

impl<T: Ioctl> Device<T> {
    /// Creates the node `/dev/<name>`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EEXIST`, `EBUSY`.
    pub(crate) fn register(name: &'static CStr, data: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            data,
            registration <- MiscDeviceRegistration::register(MiscDeviceOptions { name }),
        })
    }
}

#[vtable]
impl<T: Ioctl> MiscDevice for Open<T> {
    type Ptr = Arc<T>;

    fn open(_file: &File, registration: &MiscDeviceRegistration<Self>) -> Result<Arc<T>> {
        let registration: *const MiscDeviceRegistration<Self> = registration;
        // SAFETY: `Open` is private, so every registration of it is the field of a `Device<T>`.
        // That was initialised before the registration, which comes last, and is dropped after it.
        let device = unsafe { &*container_of!(registration.cast_mut(), Device<T>, registration) };
        Ok(device.data.clone())
    }

    fn ioctl(
        data: <Self::Ptr as kernel::types::ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        cmd: u32,
        arg: usize,
    ) -> Result<isize> {
        data.ioctl(cmd, arg)
    }
}
