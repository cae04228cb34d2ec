//! Credentials that agents use and never see: `[[net.credential]]` of the daemon's configuration.
//!
//! A credential belongs to one host and port, and says for which paths and methods it may be used, how it is presented
//! and whose agents may use it. An agent uses it only if its policy names it (`[net] credentials`). Secrets are read
//! once, at start-up, while the daemon still may; they leave this module only as header values marked sensitive.
//! Everything here is pure after that; [`super::terminate`] does the work.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::Method;
use ::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::authority::{Authority, AuthorityError};
use crate::gateway::KeySource;
use crate::gateway::secret::{SecretError, read_secret};

/// `[net]` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetConfig {
    /// PEM files with further roots that hosts of credentials are verified against.
    pub extra_ca: Vec<PathBuf>,
    /// `[[net.credential]]`.
    pub credential: Vec<CredentialConfig>,
}

/// One `[[net.credential]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialConfig {
    /// What policies call it.
    pub name: String,
    /// A name or an address; no wildcards.
    pub host: String,
    #[serde(default = "https")]
    pub port: u16,
    /// Folders of the host that it is for; all when empty.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Methods that it is for; all but CONNECT and TRACE when empty.
    #[serde(default)]
    pub methods: Vec<String>,
    /// How it is presented.
    pub kind: Kind,
    /// Where the secret is; left out for `kind = "none"`.
    pub secret: Option<KeySource>,
    /// Whose agents may use it; when left out, those of the user that agentd was started by.
    pub users: Option<Users>,
}

fn https() -> u16 {
    443
}

/// How a secret is presented.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Not at all: these paths and methods pass without.
    None,
    /// `authorization: Bearer SECRET`.
    Bearer,
    /// `authorization: Basic …` with this user name.
    Basic(String),
    /// The secret alone in this header.
    Header(String),
}

/// Whose agents.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Users {
    /// Kernel uids.
    Only(Vec<u32>),
    /// `"everyone"`.
    Named(Everyone),
}

/// The one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Everyone {
    Everyone,
}

/// Why the credentials can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("net.credential {name}: {key} = {value:?} is not allowed; {allowed}")]
    Value {
        name: String,
        key: &'static str,
        value: String,
        allowed: &'static str,
    },
    #[error("net.credential {name}: {source}")]
    Secret {
        name: String,
        #[source]
        source: SecretError,
    },
    #[error("net.extra_ca: cannot read {}", path.display())]
    ExtraCa {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// A policy names a credential that this user does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policy names the credential {name:?} under [net] credentials, but agentd's configuration has no \
     [[net.credential]] of that name for uid {uid}"
)]
pub struct NoSuchCredential {
    name: String,
    uid: u32,
}

/// One checked credential.
pub struct Credential {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
    paths: Vec<String>,
    methods: Vec<Method>,
    /// The header it stands in, with its value; `None` for `kind = "none"`.
    present: Option<(HeaderName, HeaderValue)>,
    users: Vec<u32>,
    everyone: bool,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Credential({} for {}:{})",
            self.name, self.host, self.port
        )
    }
}

/// All that the daemon has, with the ends of TLS that they need.
#[derive(Debug, Default)]
pub struct Credentials {
    all: Vec<Arc<Credential>>,
    authority: Option<Arc<Authority>>,
}

/// What one agent may use.
#[derive(Debug, Clone)]
pub struct AgentCredentials {
    pub(super) all: Vec<Arc<Credential>>,
    pub(super) authority: Arc<Authority>,
}

impl Credentials {
    /// Reads secrets and roots, and makes the authority whose key never leaves this process.
    ///
    /// # Errors
    /// [`CredentialError`] names the credential and what is allowed.
    pub fn from_config(config: &NetConfig) -> Result<Self, CredentialError> {
        let own = rustix::process::getuid().as_raw();
        Self::with_env(config, own, &|name| std::env::var_os(name))
    }

    fn with_env(
        config: &NetConfig,
        own: u32,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, CredentialError> {
        let all = config
            .credential
            .iter()
            .map(|c| Credential::read(c, own, env).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some((at, twice)) = config.credential.iter().enumerate().find(|(at, c)| {
            config.credential[..*at]
                .iter()
                .any(|d| d.name == c.name && d.host != c.host)
        }) {
            return Err(CredentialError::Value {
                name: format!("no. {}", at + 1),
                key: "name",
                value: twice.name.clone(),
                allowed: "one name stands for one host; several tables of a name add paths and methods",
            });
        }
        let mut extra = Vec::new();
        for path in &config.extra_ca {
            extra.push(
                std::fs::read(path).map_err(|source| CredentialError::ExtraCa {
                    path: path.clone(),
                    source,
                })?,
            );
        }
        let authority = if all.is_empty() {
            None
        } else {
            let hosts: Vec<&str> = all.iter().map(|c| c.host.as_str()).collect();
            Some(Arc::new(Authority::new(&hosts, &extra)?))
        };
        Ok(Self { all, authority })
    }

    /// The credentials that a policy `names`, for an agent of `uid`; `None` if it names none.
    ///
    /// # Errors
    /// When one of them is not there for this user.
    pub fn for_agent(
        &self,
        uid: u32,
        names: &[String],
    ) -> Result<Option<AgentCredentials>, NoSuchCredential> {
        let mut all = Vec::new();
        for name in names {
            let before = all.len();
            let mine = self.all.iter().filter(|c| c.name == *name && c.is_for(uid));
            all.extend(mine.cloned());
            if all.len() == before {
                return Err(NoSuchCredential {
                    name: name.clone(),
                    uid,
                });
            }
        }
        Ok(match (&self.authority, all.is_empty()) {
            (Some(authority), false) => Some(AgentCredentials {
                all,
                authority: Arc::clone(authority),
            }),
            _ => None,
        })
    }
}

impl AgentCredentials {
    /// What programs inside have to trust instead of the host's roots.
    pub fn bundle(&self) -> &[u8] {
        self.authority.bundle()
    }

    /// Whether connections to this host and port are looked into.
    pub(super) fn cover(&self, host: &str, port: u16) -> bool {
        self.of(host, port).next().is_some()
    }

    fn of(&self, host: &str, port: u16) -> impl Iterator<Item = &Arc<Credential>> {
        let host = plain_host(host);
        self.all
            .iter()
            .filter(move |c| c.host == host && c.port == port)
    }

    /// The credential for one request, or why there is none.
    pub(super) fn choose(
        &self,
        host: &str,
        port: u16,
        method: &Method,
        path: &str,
    ) -> Result<&Credential, String> {
        if let Some(why) = devious(path) {
            return Err(why.to_owned());
        }
        let found = self.of(host, port).find(|c| c.covers(method, path));
        found.map(|c| &**c).ok_or_else(|| {
            let names: Vec<&str> = self.of(host, port).map(|c| c.name.as_str()).collect();
            format!(
                "{method} {path} is covered by no path and method of the credential {}",
                names.join(", ")
            )
        })
    }

    /// Takes out whatever the agent sent as a credential, and puts in `credential`'s.
    pub(super) fn replace(&self, credential: &Credential, headers: &mut HeaderMap) {
        for name in [
            AUTHORIZATION,
            ::http::header::PROXY_AUTHORIZATION,
            ::http::header::COOKIE,
        ] {
            headers.remove(name);
        }
        for (name, _) in self.all.iter().filter_map(|c| c.present.as_ref()) {
            headers.remove(name);
        }
        if let Some((name, value)) = &credential.present {
            headers.insert(name.clone(), value.clone());
        }
    }
}

impl Credential {
    fn read(
        config: &CredentialConfig,
        own: u32,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, CredentialError> {
        let wrong = |key, value: &str, allowed| {
            Err(CredentialError::Value {
                name: config.name.clone(),
                key,
                value: value.to_owned(),
                allowed,
            })
        };
        if config.name.is_empty() || !config.name.bytes().all(is_name_byte) {
            return wrong("name", &config.name, "letters, digits and - _ .");
        }
        let host = plain_host(&config.host);
        let is_host = host.parse::<std::net::IpAddr>().is_ok()
            || (!host.is_empty() && host.bytes().all(is_name_byte) && !host.starts_with('.'));
        if !is_host {
            return wrong(
                "host",
                &config.host,
                "one host name or address, without scheme, port or *",
            );
        }
        if config.port == 0 {
            return wrong("port", "0", "1 to 65535");
        }
        if let Some(path) = config
            .paths
            .iter()
            .find(|p| !p.starts_with('/') || devious(p).is_some())
        {
            return wrong(
                "paths",
                path,
                "folders that begin with /, without . and .. and escapes",
            );
        }
        let mut methods = Vec::new();
        for text in &config.methods {
            match Method::from_bytes(text.as_bytes()) {
                Ok(m) if is_plain_method(&m) && *text == text.to_ascii_uppercase() => {
                    methods.push(m)
                }
                _ => {
                    return wrong(
                        "methods",
                        text,
                        "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS and the like",
                    );
                }
            }
        }
        let secret = match &config.secret {
            Some(source) => read_secret(source, env).map_err(|source| CredentialError::Secret {
                name: config.name.clone(),
                source,
            })?,
            None => None,
        };
        let present = match (&config.kind, secret) {
            (Kind::None, None) => None,
            (Kind::None, Some(_)) => return wrong("secret", "…", "kind = \"none\" has no secret"),
            (_, None) => {
                return wrong(
                    "secret",
                    "",
                    "{ file = … }, { credential = … } or { env = … }",
                );
            }
            (Kind::Bearer, Some(secret)) => Some((AUTHORIZATION, secret.header("Bearer "))),
            (Kind::Basic(user), Some(secret)) => {
                if user.contains(':') || !user.bytes().all(|b| (0x20..0x7f).contains(&b)) {
                    return wrong(
                        "kind",
                        user,
                        "a user name of printable ASCII without a colon",
                    );
                }
                Some((AUTHORIZATION, secret.basic(user)))
            }
            (Kind::Header(header), Some(secret)) => {
                match HeaderName::from_bytes(header.to_ascii_lowercase().as_bytes()) {
                    Ok(name) if name != ::http::header::HOST => Some((name, secret.header(""))),
                    _ => {
                        return wrong(
                            "kind",
                            header,
                            "{ header = \"NAME\" } with the name of a header",
                        );
                    }
                }
            }
        };
        let (users, everyone) = match &config.users {
            None => (vec![own], false),
            Some(Users::Only(uids)) => (uids.clone(), false),
            Some(Users::Named(Everyone::Everyone)) => (Vec::new(), true),
        };
        Ok(Self {
            name: config.name.clone(),
            host,
            port: config.port,
            paths: config
                .paths
                .iter()
                .map(|p| p.trim_end_matches('/').to_owned())
                .collect(),
            methods,
            present,
            users,
            everyone,
        })
    }

    fn is_for(&self, uid: u32) -> bool {
        self.everyone || self.users.contains(&uid)
    }

    fn covers(&self, method: &Method, path: &str) -> bool {
        let in_folder = |folder: &String| {
            path.strip_prefix(folder.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let method_fits = if self.methods.is_empty() {
            is_plain_method(method)
        } else {
            self.methods.contains(method)
        };
        method_fits && (self.paths.is_empty() || self.paths.iter().any(in_folder))
    }
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-_.".contains(&b)
}

/// CONNECT makes a tunnel, and TRACE sends back what it got, credentials included.
fn is_plain_method(method: &Method) -> bool {
    *method != Method::CONNECT && *method != Method::TRACE
}

/// Lower case, without a trailing dot and without the brackets of IPv6.
fn plain_host(host: &str) -> String {
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Why a host and this proxy might not agree on which folder `path` is in; `None` for a plain path.
///
/// An escaped slash (`/@scope%2fname`) is normal; together with dots, or escaped twice, it is a way out of a folder.
fn devious(path: &str) -> Option<&'static str> {
    let mut once = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            once.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
        match (digit(bytes.next()), digit(bytes.next())) {
            (Some(high), Some(low)) => once.push((high * 16 + low) as u8),
            _ => return Some("the path has a broken escape"),
        }
    }
    if once.contains(&b'%') {
        return Some("the path is escaped twice");
    }
    if once.iter().any(|b| *b == b'\\' || *b < 0x20 || *b == 0x7f) {
        return Some("the path has a backslash or a control character");
    }
    let dots = once.split(|b| *b == b'/').any(|part| {
        let name = part.split(|b| *b == b';').next().unwrap_or_default();
        name == b"." || name == b".."
    });
    dots.then_some("the path has . or .. in it")
}

/// Where this host keeps the bundle that most programs read, if it does.
pub fn bundle_place() -> &'static Path {
    const PLACES: [&str; 3] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/ca-bundle.pem",
    ];
    let found = PLACES.iter().map(Path::new).find(|p| p.exists());
    found.unwrap_or(Path::new(PLACES[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<Credentials, CredentialError> {
        let config: NetConfig = toml::from_str(text).unwrap();
        Credentials::with_env(&config, 1000, &|name| {
            (name == "TOKEN").then(|| "s3cret".into())
        })
    }

    const FORGE: &str = "[[credential]]\nname = 'forge'\nhost = 'Git.Example.'\nkind = { basic = 'bot' }\n\
                         secret = { env = 'TOKEN' }\npaths = ['/team/']\nmethods = ['GET', 'POST']\n";

    fn forge() -> AgentCredentials {
        let all = with(FORGE).unwrap();
        all.for_agent(1000, &["forge".into()]).unwrap().unwrap()
    }

    #[test]
    fn a_credential_is_for_its_host_folder_and_methods_only() {
        let mine = forge();
        assert!(mine.cover("git.example", 443) && mine.cover("GIT.EXAMPLE.", 443));
        assert!(!mine.cover("git.example", 8443) && !mine.cover("x.git.example", 443));
        let choose =
            |method: Method, path: &str| mine.choose("git.example", 443, &method, path).is_ok();
        for path in ["/team", "/team/", "/team/a.git/info/refs", "/team/@a%2fb"] {
            assert!(choose(Method::GET, path), "{path}");
        }
        for path in [
            "/",
            "/teams/a",
            "/Team/a",
            "/team/../other",
            "/team/%2e%2e/other",
            "/team/..%2fother",
            "/team/%252e%252e/other",
            "/team/..;x/other",
            "/team\\..\\other",
            "/team/%zz",
            "//team/a",
        ] {
            assert!(!choose(Method::GET, path), "{path}");
        }
        assert!(!choose(Method::DELETE, "/team/a") && !choose(Method::TRACE, "/team/a"));
    }

    #[test]
    fn what_the_agent_sends_is_replaced() {
        let mine = forge();
        let chosen = mine
            .choose("git.example", 443, &Method::GET, "/team/a")
            .unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer agents-own"));
        headers.insert(
            ::http::header::COOKIE,
            HeaderValue::from_static("session=1"),
        );
        headers.insert("accept", HeaderValue::from_static("*/*"));
        mine.replace(chosen, &mut headers);
        assert_eq!(headers.len(), 2);
        // base64 of bot:s3cret
        assert_eq!(headers[AUTHORIZATION], "Basic Ym90OnMzY3JldA==");
        assert!(headers[AUTHORIZATION].is_sensitive());
        assert!(!format!("{mine:?}").contains("s3cret"));
    }

    #[test]
    fn a_user_has_only_what_is_for_it() {
        let all = with(FORGE).unwrap();
        let error = all
            .for_agent(1001, &["forge".into()])
            .unwrap_err()
            .to_string();
        assert!(error.contains("forge") && error.contains("1001"), "{error}");
        assert!(all.for_agent(1001, &[]).unwrap().is_none());
        let everyone = with(&format!("{FORGE}users = 'everyone'\n")).unwrap();
        assert!(
            everyone
                .for_agent(1001, &["forge".into()])
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn mistakes_name_the_credential_and_what_is_allowed() {
        let forge = |line: &str| format!("[[credential]]\nname = 'forge'\n{line}\n");
        for (text, needle) in [
            (
                forge("host = '*.example'\nkind = 'bearer'\nsecret = { env = 'TOKEN' }"),
                "host",
            ),
            (forge("host = 'h'\nkind = 'bearer'"), "secret"),
            (
                forge("host = 'h'\nkind = 'bearer'\nsecret = { env = 'NONE' }"),
                "NONE",
            ),
            (
                forge("host = 'h'\nkind = 'none'\nmethods = ['TRACE']"),
                "methods",
            ),
            (forge("host = 'h'\nkind = 'none'\npaths = ['a']"), "paths"),
            (
                forge("host = 'h'\nkind = { basic = 'a:b' }\nsecret = { env = 'TOKEN' }"),
                "colon",
            ),
        ] {
            let error = with(&text).unwrap_err().to_string();
            assert!(
                error.contains("forge") && error.contains(needle),
                "{text}: {error}"
            );
        }
    }
}
