// SPDX-License-Identifier: GPL-2.0

//! Certificates for both ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints,
    CertificateParams,
    IsCa,
    KeyPair, //
};
use twinpage_migrate::net::{
    CertificateFiles,
    Certificates, //
};

/// Two certificates of one authority, with their files in `dir`.
pub fn certificates(dir: &Path) -> (Arc<Certificates>, Arc<Certificates>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    let issue = |name: &str, peer: &str| {
        let own = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&own, &authority, &key).unwrap();
        let path = |end: &str| dir.join(format!("{name}.{end}"));
        fs::write(path("pem"), certificate.pem()).unwrap();
        fs::write(path("key"), own.serialize_pem()).unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        Certificates::load(&CertificateFiles {
            ca: dir.join("ca.pem"),
            certificate: path("pem"),
            key: path("key"),
            revoked: None,
            peer_name: Some(peer.to_owned()),
        })
        .unwrap()
    };
    (issue("one", "other"), issue("other", "one"))
}
