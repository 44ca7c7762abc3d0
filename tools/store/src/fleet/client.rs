// SPDX-License-Identifier: GPL-2.0

//! Connections to a cluster: several at a time, each with time limits.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};

use redis::cluster::{
    ClusterClient,
    ClusterConnection,
    ClusterPipeline, //
};
use redis::cluster_routing::{
    Route,
    RoutingInfo,
    SingleNodeRoutingInfo,
    SlotAddr, //
};
use redis::{
    Cmd,
    FromRedisValue,
    TlsCertificates, //
};

use super::FleetOptions;
use crate::error::Error;

/// Connections that are kept while nobody uses them.
const IDLE: usize = 16;

/// How often the client follows a cluster that moves its keys. A server that hangs takes its time as
/// often again.
const RETRIES: u32 = 2;

/// The longest wait before that, in milliseconds.
const RETRY_WAIT_MS: u64 = 100;

/// More bytes than a file of certificates has.
const CERTIFICATES: u64 = 1 << 20;

/// Hash slots of a cluster.
const SLOTS: u16 = 16384;

/// Connections to a cluster.
pub(super) struct Client {
    client: ClusterClient,
    idle: Mutex<Vec<ClusterConnection>>,
}

impl Client {
    /// Knows how to connect; does not yet.
    pub(super) fn new(options: &FleetOptions) -> Result<Self, Error> {
        // When another part of the program was first, its provider serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = ClusterClient::builder(nodes(options)?)
            .connection_timeout(options.connect_timeout)
            .response_timeout(options.reply_timeout)
            .retries(RETRIES)
            .min_retry_wait(1)
            .max_retry_wait(RETRY_WAIT_MS);
        if let Some(ca) = &options.ca {
            builder = builder.certs(TlsCertificates {
                client_tls: None,
                root_cert: Some(certificates(ca)?),
            });
        }
        let client = builder
            .build()
            .map_err(|error| Error::Address(error.to_string()))?;
        Ok(Self {
            client,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// The idle connections. No holder of the lock panics.
    fn idle(&self) -> MutexGuard<'_, Vec<ClusterConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses a connection, and keeps it when all went well.
    fn with<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut ClusterConnection) -> redis::RedisResult<T>,
    ) -> Result<T, Error> {
        let idle = self.idle().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self
                .client
                .get_connection()
                .map_err(Error::server("be reached"))?,
        };
        let done = work(&mut connection).map_err(Error::server(action))?;
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(connection);
        }
        Ok(done)
    }

    /// Sends a command about a key to the server that has it.
    pub(super) fn ask<T: FromRedisValue>(
        &self,
        action: &'static str,
        command: &Cmd,
    ) -> Result<T, Error> {
        self.with(action, |connection| command.query(connection))
    }

    /// Sends a command to the server of `slot`.
    pub(super) fn ask_slot<T: FromRedisValue>(
        &self,
        action: &'static str,
        slot: u16,
        command: &Cmd,
    ) -> Result<T, Error> {
        let route = Route::new(slot, SlotAddr::Master);
        let routing = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
        self.with(action, |connection| {
            let value = connection.route_command(command, routing)?;
            Ok(redis::from_redis_value(value)?)
        })
    }

    /// Sends many commands about keys, each to the server that has it.
    pub(super) fn ask_all<T: FromRedisValue>(
        &self,
        action: &'static str,
        commands: &ClusterPipeline,
    ) -> Result<T, Error> {
        self.with(action, |connection| commands.query(connection))
    }

    /// One hash slot of each server that has any.
    pub(super) fn slots(&self) -> Result<Vec<u16>, Error> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let rows: Vec<redis::Value> = self.with("tell its servers", |connection| {
            let value = connection.route_command(&command, random)?;
            Ok(redis::from_redis_value(value)?)
        })?;
        let mut servers = BTreeMap::new();
        for row in rows {
            let (first, server) = slot_range(row).ok_or(Error::Answer {
                action: "CLUSTER SLOTS",
                what: "no list of servers".to_owned(),
            })?;
            servers.entry(server).or_insert(first);
        }
        Ok(servers.into_values().collect())
    }
}

/// The first slot of a row of `CLUSTER SLOTS`, and what tells its server from others.
fn slot_range(row: redis::Value) -> Option<(u16, String)> {
    let redis::Value::Array(row) = row else {
        return None;
    };
    let mut row = row.into_iter();
    let first: u16 = redis::from_redis_value(row.next()?).ok()?;
    let server = row.nth(1)?;
    (first < SLOTS).then(|| (first, format!("{server:?}")))
}

/// The addresses in the URL of a fleet, one URL each. Plaintext is refused whatever the address: a
/// node of this host names those of others.
pub(super) fn nodes(options: &FleetOptions) -> Result<Vec<String>, Error> {
    let wrong = |what: &str| Error::Address(what.to_owned());
    let (scheme, rest) = options
        .url
        .split_once("://")
        .ok_or_else(|| wrong("it begins with redis:// or rediss://"))?;
    if scheme != "redis" && scheme != "rediss" {
        return Err(wrong("it begins with redis:// or rediss://"));
    }
    if scheme == "redis" && !options.plaintext {
        return Err(Error::Plaintext);
    }
    let (login, hosts) = match rest.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), rest),
    };
    let hosts = hosts.trim_end_matches('/');
    if hosts.contains(['/', '?', '#']) {
        return Err(wrong("nothing may follow the hosts"));
    }
    let hosts: Vec<_> = hosts.split(',').collect();
    if hosts.iter().any(|host| host.is_empty()) {
        return Err(wrong("a host is missing"));
    }
    Ok(hosts
        .iter()
        .map(|host| format!("{scheme}://{login}{host}"))
        .collect())
}

/// The certificates in the file at `path`.
fn certificates(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(CERTIFICATES).read_to_end(&mut bytes))
        .map_err(Error::file("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fleet at `url`, in clear if it must be.
    fn at(url: &str) -> FleetOptions {
        let mut options = FleetOptions::new(url);
        options.plaintext = true;
        options
    }

    #[test]
    fn one_url_names_several_nodes() {
        let table = [
            ("redis://a:1", vec!["redis://a:1"]),
            ("redis://a:1,b:2/", vec!["redis://a:1", "redis://b:2"]),
            (
                "rediss://u:p@a:1,b:2",
                vec!["rediss://u:p@a:1", "rediss://u:p@b:2"],
            ),
        ];
        for (url, expected) in table {
            assert_eq!(nodes(&at(url)).unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn other_urls_are_refused_without_their_password() {
        for url in [
            "a:1",
            "http://u:pass@a",
            "redis://u:pass@a,,b",
            "redis://u:pass@",
            "redis://u:pass@a/1",
        ] {
            let error = nodes(&at(url)).unwrap_err().chain();
            assert!(!error.contains("pass"), "{error}");
        }
    }
}
