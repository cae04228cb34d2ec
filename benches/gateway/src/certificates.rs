//! An authority, a server and a client for one run.

use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Writes `ca.der`, `server.der`, `server.key`, `client.der` and `client.key` into `directory`.
pub fn write(directory: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key)?;
    std::fs::write(directory.join("ca.der"), authority.der())?;
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let signed = CertificateParams::new([format!("{name}.bench")])?.signed_by(&key, &issuer)?;
        std::fs::write(directory.join(format!("{name}.der")), signed.der())?;
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_der())?;
    }
    Ok(())
}
