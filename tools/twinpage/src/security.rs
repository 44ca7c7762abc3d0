// SPDX-License-Identifier: GPL-2.0

//! Keys and certificates that the command line names.

use twinpage_migrate::net::{
    CertificateFiles,
    Certificates,
    Psk,
    Security, //
};

use crate::cli::security::SecurityOptions;
use crate::error::Error;

/// Loads what `options` name.
///
/// # Errors
///
/// They name nothing, or a file cannot be used.
pub fn load(options: &SecurityOptions) -> Result<Security, Error> {
    if let Some(path) = &options.key {
        return Ok(Security::Psk(Psk::load(path)?));
    }
    let named = (&options.ca, &options.cert, &options.key_file);
    if let (Some(ca), Some(certificate), Some(key)) = named {
        let files = CertificateFiles {
            ca: ca.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
            revoked: options.revoked.clone(),
            peer_name: options.peer_name.clone(),
        };
        return Ok(Security::Certificates(Certificates::load(&files)?));
    }
    match options.insecure {
        true => Ok(Security::Insecure),
        false => Err(Error::NoSecurity),
    }
}
