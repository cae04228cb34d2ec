//! The ends of TLS for hosts with a credential: an authority of this daemon's own towards agents, the host's real one
//! towards the network.
//!
//! The authority is made anew at each start; its key is in memory only. It signs one certificate for each host that
//! has a credential, and is itself constrained to those names, so that even with its key nobody could stand in for
//! another host. The certificate is put into the sandboxes that use a credential, and nowhere else. Towards the network the
//! host's roots hold, with whatever `net.extra_ca` adds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot make a certificate for {host}: {why}")]
    Certificate { host: String, why: String },
    #[error("net.extra_ca: no certificate can be read from the PEM text: {0}")]
    ExtraCa(String),
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Both ends.
pub struct Authority {
    servers: BTreeMap<String, Arc<rustls::ServerConfig>>,
    client: Arc<rustls::ClientConfig>,
    bundle: Vec<u8>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("hosts", &self.servers.keys())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// An authority for `hosts`, which trusts this system's roots and those in the PEM texts `extra`.
    pub(super) fn new(hosts: &[&str], extra: &[Vec<u8>]) -> Result<Self, AuthorityError> {
        let fault = |host: &str| {
            let host = host.to_owned();
            move |error: rcgen::Error| AuthorityError::Certificate {
                host,
                why: error.to_string(),
            }
        };
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(
            DnType::CommonName,
            "agentd: hosts with a credential, this run only",
        );
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: hosts.iter().map(|h| subtree(h)).collect(),
            excluded_subtrees: Vec::new(),
        });
        let key = KeyPair::generate().map_err(fault("the authority"))?;
        let own = params.self_signed(&key).map_err(fault("the authority"))?;
        let issuer = Issuer::new(params, key);

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut servers = BTreeMap::new();
        for host in hosts {
            if servers.contains_key(*host) {
                continue;
            }
            let mut leaf = CertificateParams::new(vec![(*host).to_owned()]).map_err(fault(host))?;
            leaf.distinguished_name.push(DnType::CommonName, *host);
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            leaf.use_authority_key_identifier_extension = true;
            let leaf_key = KeyPair::generate().map_err(fault(host))?;
            let certificate = leaf.signed_by(&leaf_key, &issuer).map_err(fault(host))?;
            let chain = vec![certificate.der().clone(), own.der().clone()];
            let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
            let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(chain, private)?;
            server.alpn_protocols = vec![b"http/1.1".to_vec()];
            servers.insert((*host).to_owned(), Arc::new(server));
        }

        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "a TLS root of this system cannot be read");
        }
        let mut roots = rustls::RootCertStore::empty();
        let mut bundle = Vec::new();
        for certificate in &native.certs {
            write_pem(&mut bundle, certificate);
        }
        roots.add_parsable_certificates(native.certs);
        for text in extra {
            let found: Vec<_> = CertificateDer::pem_slice_iter(text)
                .collect::<Result<_, _>>()
                .map_err(|e| AuthorityError::ExtraCa(e.to_string()))?;
            if found.is_empty() {
                return Err(AuthorityError::ExtraCa("there is none in it".into()));
            }
            for certificate in found {
                roots.add(certificate)?;
            }
        }
        write_pem(&mut bundle, own.der());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            servers,
            client: Arc::new(client),
            bundle,
        })
    }

    /// What an agent's connection to `host` is answered with.
    pub(super) fn server(&self, host: &str) -> Option<Arc<rustls::ServerConfig>> {
        self.servers.get(host).cloned()
    }

    /// What the connection to the real host is made with.
    pub(super) fn client(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.client)
    }

    /// The system's roots and this authority's certificate: what programs in a sandbox have to trust.
    pub fn bundle(&self) -> &[u8] {
        &self.bundle
    }
}

/// The name that the host's own certificate must carry.
pub(super) fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

fn subtree(host: &str) -> GeneralSubtree {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => GeneralSubtree::IpAddress(CidrSubnet::V4(v4.octets(), [0xff; 4])),
        Ok(IpAddr::V6(v6)) => GeneralSubtree::IpAddress(CidrSubnet::V6(v6.octets(), [0xff; 16])),
        Err(_) => GeneralSubtree::DnsName(host.to_owned()),
    }
}

fn write_pem(out: &mut Vec<u8>, certificate: &CertificateDer<'_>) {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    out.extend_from_slice(b"-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.extend_from_slice(b"-----END CERTIFICATE-----\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_an_end_and_the_bundle_has_our_certificate() {
        let authority = Authority::new(&["git.example", "127.0.0.2"], &[]).unwrap();
        assert!(
            authority.server("git.example").is_some() && authority.server("127.0.0.2").is_some()
        );
        assert!(authority.server("other.example").is_none());
        let last = CertificateDer::pem_slice_iter(authority.bundle())
            .last()
            .unwrap()
            .unwrap();
        assert!(rustls::RootCertStore::empty().add(last).is_ok());
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_text_without_certificates_is_refused() {
        let error = Authority::new(&["h"], &[b"nothing".to_vec()]).unwrap_err();
        assert!(error.to_string().contains("extra_ca"), "{error}");
    }
}
