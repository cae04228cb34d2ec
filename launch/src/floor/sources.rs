//! The host paths that a plan may bind in root mode: owned by root, readable by everyone, never secret.
//!
//! A path beneath one of them is allowed too, but for [`REFUSED`]. Sources are resolved without following symbolic
//! links, so what is named is what is mounted.

/// What may be bound, itself or a part of it.
pub const ROOT_SOURCES: &[&str] = &[
    "/bin",
    "/etc/alternatives",
    "/etc/bash.bashrc",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/gitconfig",
    "/etc/inputrc",
    "/etc/java-17-openjdk",
    "/etc/java-21-openjdk",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/localtime",
    "/etc/lsb-release",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/os-release",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/profile.d",
    "/etc/protocols",
    "/etc/python3",
    "/etc/services",
    "/etc/ssl",
    "/etc/terminfo",
    "/etc/timezone",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/opt",
    "/sbin",
    "/usr",
];

/// Secrets that distributions keep beneath a listed path. Their files are readable by root alone, and the agent is
/// never root: this refuses to name them all the same.
const REFUSED: &[&str] = &["/etc/ssl/private"];

fn at_or_beneath(path: &[u8], of: &str) -> bool {
    path.strip_prefix(of.as_bytes())
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Whether `path`, already known to be absolute and normal, may be bound.
pub fn allowed(path: &[u8]) -> bool {
    ROOT_SOURCES
        .iter()
        .any(|source| at_or_beneath(path, source))
        && !REFUSED.iter().any(|refused| at_or_beneath(path, refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_only_begins_alike_is_not_beneath() {
        assert!(allowed(b"/usr/bin"));
        assert!(!allowed(b"/usrbin"));
        assert!(!allowed(b"/etc/ssl/private/key.pem"));
        assert!(allowed(b"/etc/ssl/privateer"));
    }
}
