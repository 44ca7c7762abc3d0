// SPDX-License-Identifier: GPL-2.0

//! The TLS configuration of each side: version 1.3 only, both sides authenticated, no resumption.

use std::sync::Arc;

use rustls::client::danger::{
    HandshakeSignatureValid,
    ServerCertVerifier, //
};
use rustls::client::{
    verify_server_name,
    AlwaysResolvesClientRawPublicKeys,
    Resumption,
    WebPkiServerVerifier, //
};
use rustls::crypto::{
    ring as ring_provider,
    CryptoProvider, //
};
use rustls::pki_types::{
    CertificateDer,
    ServerName,
    UnixTime, //
};
use rustls::server::danger::{
    ClientCertVerified,
    ClientCertVerifier, //
};
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys,
    NoServerSessionStorage,
    ParsedCertificate,
    WebPkiClientVerifier, //
};
use rustls::version::TLS13;
use rustls::{
    ClientConfig,
    DigitallySignedStruct,
    DistinguishedName,
    ServerConfig,
    SignatureScheme,
    SupportedCipherSuite, //
};

use super::identity::{
    Certificates,
    Psk, //
};
use super::raw_key::{
    own_key,
    OnlyKey,
    Role, //
};
use super::Error;

/// What both sides must agree to speak inside of TLS.
pub(super) const ALPN: &[u8] = b"twinpage-migrate/1";

/// The provider, with the ciphers in the order of their speed on this processor.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: cipher_suites(),
        ..ring_provider::default_provider()
    })
}

/// The ciphers of TLS 1.3, the fastest first.
fn cipher_suites() -> Vec<SupportedCipherSuite> {
    use ring_provider::cipher_suite::{
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256, //
    };
    match has_aes() {
        true => vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        false => vec![
            TLS13_CHACHA20_POLY1305_SHA256,
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
        ],
    }
}

/// Whether the processor has instructions for AES and for GCM's multiplication.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// What rustls says about a configuration that it refuses.
fn bad(error: impl ToString) -> Error {
    Error::BadIdentity(error.to_string())
}

/// What is the same for all clients.
fn finish_client(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// What is the same for all servers.
fn finish_server(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// The connecting side with a pre-shared key.
pub(super) fn psk_client(psk: &Psk) -> Result<Arc<ClientConfig>, Error> {
    let own = own_key(psk, Role::Connector)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(OnlyKey::of(psk, Role::Listener)?)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
    Ok(finish_client(config))
}

/// The listening side with a pre-shared key.
pub(super) fn psk_server(psk: &Psk) -> Result<Arc<ServerConfig>, Error> {
    let own = own_key(psk, Role::Listener)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(OnlyKey::of(psk, Role::Connector)?)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
    Ok(finish_server(config))
}

/// The connecting side with certificates.
pub(super) fn certificate_client(own: &Certificates) -> Result<Arc<ClientConfig>, Error> {
    let verifier: Arc<dyn ServerCertVerifier> =
        WebPkiServerVerifier::builder_with_provider(own.roots.clone(), provider())
            .with_crls(own.revoked.iter().cloned())
            .build()
            .map_err(bad)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
        .map_err(bad)?;
    Ok(finish_client(config))
}

/// The listening side with certificates.
pub(super) fn certificate_server(own: &Certificates) -> Result<Arc<ServerConfig>, Error> {
    let chain = WebPkiClientVerifier::builder_with_provider(own.roots.clone(), provider())
        .with_crls(own.revoked.iter().cloned())
        .build()
        .map_err(bad)?;
    let verifier: Arc<dyn ClientCertVerifier> = match &own.peer_name {
        Some(name) => Arc::new(Named {
            chain,
            name: name.clone(),
        }),
        None => chain,
    };
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(bad)?;
    Ok(finish_server(config))
}

/// Takes certificates that have the right name, besides what another verifier wants.
#[derive(Debug)]
struct Named {
    chain: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
