//! TLS 1.3 over either transport: bytes in, bytes out, no socket.
//!
//! The server proves itself and so must every client: there is no listener with TLS and without client certificates. Of a
//! verified certificate only one thing is used: for which of the names in the configuration it is valid. One that is valid
//! for none, or for several, is turned away.
//!
//! rustls does the protocol; an idle connection keeps its keys and no buffers of ours. No session tickets: a resumed
//! session would only save a signature, and each ticket costs memory on both sides. Fails with [`Ending::Tls`].

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::ending::Ending;

/// What a listener shows and whom it takes.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    config: Arc<ServerConfig>,
    clients: Arc<[(Arc<str>, ServerName<'static>)]>,
}

/// Why a listener's TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    #[error("client authority")]
    Authority(#[source] rustls::Error),
    #[error("client authority: {0}")]
    Verifier(String),
    #[error("certificate and key")]
    Certificate(#[source] rustls::Error),
    #[error("client name {0:?} is no DNS name or IP address")]
    ClientName(String),
    #[error("TLS 1.3 is not in this build")]
    Version(#[source] rustls::Error),
}

impl TlsConfig {
    /// `chain` and `key` are the server's; `authority` signs client certificates; `clients` are the names that it may
    /// have signed and that mean something here.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authority: Vec<CertificateDer<'static>>,
        clients: &[String],
    ) -> Result<Self, TlsConfigError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in authority {
            roots.add(certificate).map_err(TlsConfigError::Authority)?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| TlsConfigError::Verifier(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsConfigError::Version)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(TlsConfigError::Certificate)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let clients: Result<Vec<_>, _> = clients
            .iter()
            .map(|name| {
                let parsed = ServerName::try_from(name.clone());
                let parsed = parsed.map_err(|_| TlsConfigError::ClientName(name.clone()))?;
                Ok((Arc::from(name.as_str()), parsed))
            })
            .collect();
        Ok(Self {
            config: Arc::new(config),
            clients: clients?.into(),
        })
    }
}

/// One connection's TLS.
#[derive(Debug)]
pub struct Tls {
    conn: ServerConnection,
    clients: Arc<[(Arc<str>, ServerName<'static>)]>,
    finished: bool,
}

fn failed(error: &dyn std::fmt::Display) -> Ending {
    Ending::Tls(error.to_string())
}

impl Tls {
    pub fn new(config: &TlsConfig) -> Result<Self, Ending> {
        let conn =
            ServerConnection::new(Arc::clone(&config.config)).map_err(|error| failed(&error))?;
        Ok(Self {
            conn,
            clients: Arc::clone(&config.clients),
            finished: false,
        })
    }

    pub fn is_handshaking(&self) -> bool {
        self.conn.is_handshaking()
    }

    /// The peer has said that it sends nothing more (`close_notify`).
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Takes records; what they held is appended to `plain`, what has to be answered to `out` (an alert too, when this
    /// fails).
    pub fn feed(
        &mut self,
        mut records: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), Ending> {
        while !records.is_empty() {
            let taken = self
                .conn
                .read_tls(&mut records)
                .map_err(|error| failed(&error))?;
            let state = self.conn.process_new_packets();
            // Answers first: an alert is among them when the records were bad.
            self.take(out)?;
            let state = state.map_err(|error| failed(&error))?;
            self.finished |= state.peer_has_closed();
            let ready = state.plaintext_bytes_to_read();
            if ready > 0 {
                let at = plain.len();
                plain.resize(at + ready, 0);
                self.conn
                    .reader()
                    .read_exact(&mut plain[at..])
                    .map_err(|error| failed(&error))?;
            } else if taken == 0 {
                return Err(Ending::Tls("bytes after the end of the session".to_owned()));
            }
        }
        Ok(())
    }

    /// Seals `plain` into `out`.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Ending> {
        let mut rest = plain;
        while !rest.is_empty() {
            // Bounded by rustls's buffer: each round is taken out at once.
            let count = self
                .conn
                .writer()
                .write(rest)
                .map_err(|error| failed(&error))?;
            rest = &rest[count..];
            self.take(out)?;
        }
        Ok(())
    }

    /// The end of the session, for a peer that wants to know it from a cut.
    pub fn goodbye(&mut self, out: &mut Vec<u8>) {
        self.conn.send_close_notify();
        // Into memory; a session that can't say goodbye just closes.
        drop(self.take(out));
    }

    fn take(&mut self, out: &mut Vec<u8>) -> Result<(), Ending> {
        while self.conn.wants_write() {
            let written: io::Result<usize> = self.conn.write_tls(out);
            written.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// For which of the configured names the verified certificate is valid.
    pub fn client(&self) -> Result<Arc<str>, Ending> {
        let Some(certificate) = self.conn.peer_certificates().and_then(<[_]>::first) else {
            return Err(Ending::Tls("no client certificate".to_owned()));
        };
        let parsed = ParsedCertificate::try_from(certificate).map_err(|error| failed(&error))?;
        let mut valid = self
            .clients
            .iter()
            .filter(|(_, name)| verify_server_name(&parsed, name).is_ok());
        match (valid.next(), valid.next()) {
            (Some((name, _)), None) => Ok(Arc::clone(name)),
            (None, _) => Err(Ending::Turned(
                "the client certificate is valid for no name of [bus.gateway] peers".to_owned(),
            )),
            (Some((one, _)), Some((two, _))) => Err(Ending::Turned(format!(
                "the client certificate is valid for {one} and for {two}; it has to say which one it is"
            ))),
        }
    }
}
