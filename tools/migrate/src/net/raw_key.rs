// SPDX-License-Identifier: GPL-2.0

//! A pre-shared key as TLS identities.
//!
//! rustls has no pre-shared keys of the kind TLS 1.3 calls external. It has raw public keys (RFC
//! 7250): a certificate that is nothing but a public key. So each role has an Ed25519 key whose
//! seed is HKDF-SHA256 of the pre-shared key and the role's name; whoever holds the pre-shared
//! key can compute both, signs the handshake with the one of its role, and accepts exactly the
//! other one. What that proves is in Documentation/migration.rst.

use std::sync::Arc;

use ring::signature::{
    Ed25519KeyPair,
    KeyPair, //
};
use rustls::client::danger::{
    HandshakeSignatureValid,
    ServerCertVerified,
    ServerCertVerifier, //
};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::crypto::{
    verify_tls13_signature_with_raw_key,
    WebPkiSupportedAlgorithms, //
};
use rustls::pki_types::{
    CertificateDer,
    PrivatePkcs8KeyDer,
    ServerName,
    SubjectPublicKeyInfoDer,
    UnixTime, //
};
use rustls::server::danger::{
    ClientCertVerified,
    ClientCertVerifier, //
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError,
    DigitallySignedStruct,
    DistinguishedName,
    PeerIncompatible,
    SignatureScheme, //
};
use zeroize::Zeroizing;

use super::identity::Psk;
use super::Error;

/// The side of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The one that connects: TLS client.
    Connector,
    /// The one that listens: TLS server.
    Listener,
}

impl Role {
    /// What the key of the role is derived for.
    fn purpose(self) -> &'static str {
        match self {
            Self::Connector => "ed25519 of the connector",
            Self::Listener => "ed25519 of the listener",
        }
    }
}

/// PKCS #8 of an Ed25519 key up to the 32 bytes of the seed (RFC 8410, section 7).
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// SubjectPublicKeyInfo of an Ed25519 key up to the 32 bytes of the key (RFC 8410, section 4).
const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The public key of `role`, as it travels in the handshake.
fn public(psk: &Psk, role: Role) -> Result<Vec<u8>, Error> {
    let seed = psk.derive(role.purpose());
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed[..])
        .map_err(|error| Error::BadIdentity(error.to_string()))?;
    Ok([&SPKI[..], pair.public_key().as_ref()].concat())
}

/// What `role` signs the handshake with.
pub(super) fn own_key(psk: &Psk, role: Role) -> Result<Arc<CertifiedKey>, Error> {
    let seed = psk.derive(role.purpose());
    let mut pkcs8 = Zeroizing::new([0; 48]);
    pkcs8[..16].copy_from_slice(&PKCS8);
    pkcs8[16..].copy_from_slice(&seed[..]);
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]))
        .map_err(|error| Error::BadIdentity(error.to_string()))?;
    let public = CertificateDer::from(public(psk, role)?);
    Ok(Arc::new(CertifiedKey::new(vec![public], key)))
}

/// Accepts one public key and no other.
#[derive(Debug)]
pub(super) struct OnlyKey {
    expected: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl OnlyKey {
    /// Accepts the key of `role`.
    ///
    /// # Errors
    ///
    /// [`Error::BadIdentity`]: the key cannot be derived.
    pub(super) fn of(psk: &Psk, role: Role) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            expected: public(psk, role)?,
            algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms,
        }))
    }

    /// Whether `shown` is the expected key, without anything after it.
    fn check(&self, shown: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Checked {
        match shown.as_ref() == self.expected && more.is_empty() {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    /// Whether the holder of `shown` signed `message`.
    fn signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }
}

/// What [`OnlyKey::check`] says.
type Checked = Result<(), rustls::Error>;

/// TLS 1.2 is not spoken.
fn no_tls12() -> rustls::Error {
    PeerIncompatible::SupportedVersionsExtensionRequired.into()
}

impl ServerCertVerifier for OnlyKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for OnlyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_different_keys_that_follow_from_the_secret() {
        let psk = Psk::generate().unwrap();
        let connector = public(&psk, Role::Connector).unwrap();
        let listener = public(&psk, Role::Listener).unwrap();
        assert_ne!(connector, listener);
        assert_eq!(connector, public(&psk.clone(), Role::Connector).unwrap());
        let other = Psk::generate().unwrap();
        assert_ne!(connector, public(&other, Role::Connector).unwrap());
    }

    #[test]
    fn what_is_shown_is_what_is_expected() {
        let psk = Psk::generate().unwrap();
        let own = own_key(&psk, Role::Connector).unwrap();
        let shown = own.cert.first().unwrap();
        let expected = OnlyKey::of(&psk, Role::Connector).unwrap();
        assert!(expected.check(shown, &[]).is_ok());
        assert!(expected.check(shown, &[shown.clone()]).is_err());
        let reflected = OnlyKey::of(&psk, Role::Listener).unwrap();
        assert!(reflected.check(shown, &[]).is_err());
    }
}
