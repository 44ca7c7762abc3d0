// SPDX-License-Identifier: GPL-2.0

//! Options that say how two proxies know each other, shared by every command that has a peer.

use std::path::PathBuf;

use clap::Args;

/// How the peer is known and the link is kept private: one of three ways.
#[derive(Args, Clone, Debug, Default)]
pub struct SecurityOptions {
    /// The key that both hosts hold (twinpage migrate keygen)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ca", "insecure"])]
    pub key: Option<PathBuf>,
    /// Certificates of the authorities that sign for peers, PEM
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key_file"], conflicts_with = "insecure")]
    pub ca: Option<PathBuf>,
    /// The certificate of this host, PEM
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub cert: Option<PathBuf>,
    /// The private key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub key_file: Option<PathBuf>,
    /// Certificates that are not good any more (a CRL), PEM
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub revoked: Option<PathBuf>,
    /// The name that the peer's certificate must be for [default: the host of its address]
    #[arg(long, value_name = "NAME", requires = "ca")]
    pub peer_name: Option<String>,
    /// Neither encrypt nor ask who the peer is
    #[arg(long)]
    pub insecure: bool,
}
