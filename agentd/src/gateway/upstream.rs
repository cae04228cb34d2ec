//! The providers: where they are, how the key is presented, and the HTTP client that reaches them.
//!
//! Keys are read once, in [`Upstreams::from_config`], which start-up calls while the daemon still may: later neither
//! the files nor `$CREDENTIALS_DIRECTORY` are within its reach. TLS roots are the system's and are read at the same
//! time. Nothing here logs a request, and no error carries a key.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Uri};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::api::Provider;
use super::config::{Auth, KeySource, ModelConfig, ProviderConfig};
use super::secret::{Secret, SecretError, read_secret};

/// The header Anthropic wants beside a subscription token.
const OAUTH_BETA: &str = "oauth-2025-04-20";

pub(super) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Why the model configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamsError {
    /// The file with the key can't be read.
    #[error("model.{provider}.key: cannot read {}", path.display())]
    KeyFile {
        /// Which provider.
        provider: Provider,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The variable is not set.
    #[error("model.{provider}.key: the daemon's environment has no {name}")]
    KeyEnv {
        /// Which provider.
        provider: Provider,
        /// The variable.
        name: String,
    },
    /// There is no credentials directory.
    #[error(
        "model.{provider}.key: no $CREDENTIALS_DIRECTORY for the credential {name}; \
         add LoadCredential={name}:PATH to the unit"
    )]
    NoCredentials {
        /// Which provider.
        provider: Provider,
        /// The credential.
        name: String,
    },
    /// The key is empty or has characters no header may hold.
    #[error(
        "model.{provider}.key: the first line of {origin} is not a key (one word of printable ASCII)"
    )]
    KeyForm {
        /// Which provider.
        provider: Provider,
        /// Where it came from.
        origin: String,
    },
    /// The base URL is none.
    #[error(
        "model.{provider}.base_url: {url:?} is not http(s)://HOST[:PORT][/PATH] without query or user"
    )]
    BaseUrl {
        /// Which provider.
        provider: Provider,
        /// As given.
        url: String,
    },
}

/// All providers the daemon can reach for its agents. One for the whole daemon.
pub struct Upstreams {
    anthropic: Option<Upstream>,
    openai: Option<Upstream>,
    pub(super) client: HttpClient,
    pub(super) answer_timeout: Duration,
    pub(super) idle_timeout: Duration,
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstreams")
            .field("anthropic", &self.anthropic)
            .field("openai", &self.openai)
            .finish()
    }
}

/// One provider, ready to be asked.
#[derive(Debug)]
pub struct Upstream {
    base: String,
    key: Option<Secret>,
    auth: Auth,
    provider: Provider,
}

impl Upstreams {
    /// Reads keys and TLS roots.
    ///
    /// A provider without a table in the configuration is taken from where its own tools look, so that a daemon
    /// started by hand just works: the credential named `anthropic` or `openai`, then `ANTHROPIC_API_KEY`,
    /// `ANTHROPIC_AUTH_TOKEN` or `CLAUDE_CODE_OAUTH_TOKEN` (subscription), `OPENAI_API_KEY`; with
    /// `ANTHROPIC_BASE_URL` and `OPENAI_BASE_URL`. With none of these the provider is not offered.
    pub fn from_config(config: &ModelConfig) -> Result<Self, UpstreamsError> {
        Self::with_env(config, |name| std::env::var_os(name))
    }

    fn with_env(
        config: &ModelConfig,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, UpstreamsError> {
        let one = |provider: Provider, given: &Option<ProviderConfig>| match given {
            Some(given) => Upstream::read(provider, given, &env).map(Some),
            None => match found_in_surroundings(provider, &env) {
                Some(found) => Upstream::read(provider, &found, &env).map(Some),
                None => Ok(None),
            },
        };
        Ok(Self {
            anthropic: one(Provider::Anthropic, &config.anthropic)?,
            openai: one(Provider::OpenAi, &config.openai)?,
            client: client(Duration::from_millis(config.connect_timeout_ms)),
            answer_timeout: Duration::from_millis(config.answer_timeout_ms),
            idle_timeout: Duration::from_millis(config.idle_timeout_ms),
        })
    }

    /// The provider, if it is configured.
    pub fn get(&self, provider: Provider) -> Option<&Upstream> {
        match provider {
            Provider::Anthropic => self.anthropic.as_ref(),
            Provider::OpenAi => self.openai.as_ref(),
        }
    }
}

fn client(connect_timeout: Duration) -> HttpClient {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(connect_timeout));
    http.set_nodelay(true);
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a TLS root of this system cannot be read");
    }
    let (added, _) = roots.add_parsable_certificates(native.certs);
    if added == 0 {
        tracing::warn!(
            "this system has no TLS roots: providers are reachable by http only; install ca-certificates"
        );
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring offers TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(8)
        .build(connector)
}

fn found_in_surroundings(
    provider: Provider,
    env: &impl Fn(&str) -> Option<OsString>,
) -> Option<ProviderConfig> {
    let set = |name: &str| env(name).is_some_and(|v| !v.is_empty());
    let base_url = match provider {
        Provider::Anthropic => env("ANTHROPIC_BASE_URL"),
        // Its tools write it with /v1, which the gateway's own paths bring along.
        Provider::OpenAi => env("OPENAI_BASE_URL"),
    };
    let base_url = base_url
        .and_then(|u| u.into_string().ok())
        .filter(|u| !u.is_empty())
        .map(|u| {
            let u = u.trim_end_matches('/');
            u.strip_suffix("/v1").unwrap_or(u).to_owned()
        });
    let credential = env("CREDENTIALS_DIRECTORY")
        .is_some_and(|d| Path::new(&d).join(provider.as_str()).exists());
    let by_env = |name: &str, auth| set(name).then(|| (KeySource::Env(name.into()), auth));
    let found = match provider {
        _ if credential => Some((
            KeySource::Credential(provider.as_str().into()),
            Auth::ApiKey,
        )),
        Provider::Anthropic => by_env("ANTHROPIC_API_KEY", Auth::ApiKey)
            .or_else(|| by_env("ANTHROPIC_AUTH_TOKEN", Auth::Subscription))
            .or_else(|| by_env("CLAUDE_CODE_OAUTH_TOKEN", Auth::Subscription)),
        Provider::OpenAi => by_env("OPENAI_API_KEY", Auth::ApiKey),
    };
    found.map(|(key, auth)| ProviderConfig {
        base_url,
        key,
        auth,
    })
}

impl Upstream {
    fn read(
        provider: Provider,
        config: &ProviderConfig,
        env: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, UpstreamsError> {
        let base = config
            .base_url
            .as_deref()
            .unwrap_or(provider.default_base_url());
        let bad_url = || UpstreamsError::BaseUrl {
            provider,
            url: base.to_owned(),
        };
        let uri: Uri = base.parse().map_err(|_| bad_url())?;
        let plain = matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|a| !a.as_str().contains('@'))
            && uri.query().is_none();
        if !plain {
            return Err(bad_url());
        }
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            key: read_key(provider, &config.key, env)?,
            auth: config.auth,
            provider,
        })
    }

    /// The address of `path` (beginning with `/v1/`) at this provider.
    pub(super) fn uri(&self, path: &str) -> Result<Uri, http::uri::InvalidUri> {
        format!("{}{path}", self.base).parse()
    }

    /// Adds the key to the headers of a request.
    pub(super) fn authorise(&self, headers: &mut HeaderMap) {
        let Some(key) = &self.key else { return };
        match (self.provider, self.auth) {
            (Provider::Anthropic, Auth::ApiKey) => {
                headers.insert(HeaderName::from_static("x-api-key"), key.header(""));
            }
            (Provider::Anthropic, Auth::Subscription) => {
                headers.insert(AUTHORIZATION, key.header("Bearer "));
                headers.append(
                    HeaderName::from_static("anthropic-beta"),
                    HeaderValue::from_static(OAUTH_BETA),
                );
            }
            (Provider::OpenAi, _) => {
                headers.insert(AUTHORIZATION, key.header("Bearer "));
            }
        }
    }

    /// `body` without the key, should the provider have quoted it.
    pub(super) fn redact(&self, body: Bytes) -> Bytes {
        match self.key.as_ref().and_then(|key| key.redact(&body)) {
            Some(clean) => clean.into(),
            None => body,
        }
    }
}

fn read_key(
    provider: Provider,
    source: &KeySource,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<Secret>, UpstreamsError> {
    read_secret(source, env).map_err(|error| match error {
        SecretError::File { path, source } => UpstreamsError::KeyFile {
            provider,
            path,
            source,
        },
        SecretError::Env(name) => UpstreamsError::KeyEnv { provider, name },
        SecretError::NoCredentials(name) => UpstreamsError::NoCredentials { provider, name },
        SecretError::Form(origin) => UpstreamsError::KeyForm { provider, origin },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_of(up: &Upstream) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        up.authorise(&mut headers);
        headers
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()))
            .collect()
    }

    fn with(config: &str, env: &[(&str, &str)]) -> Result<Upstreams, UpstreamsError> {
        let config: ModelConfig = toml::from_str(config).unwrap();
        Upstreams::with_env(&config, |n| {
            env.iter()
                .find(|(k, _)| *k == n)
                .map(|(_, v)| OsString::from(v))
        })
    }

    #[test]
    fn nothing_configured_offers_nothing() {
        let ups = with("", &[]).unwrap();
        assert!(ups.get(Provider::Anthropic).is_none() && ups.get(Provider::OpenAi).is_none());
    }

    #[test]
    fn surroundings_stand_in_for_a_missing_table() {
        let env = [
            ("CLAUDE_CODE_OAUTH_TOKEN", "tok"),
            ("OPENAI_API_KEY", "sk"),
            ("OPENAI_BASE_URL", "http://h:1/v1/"),
        ];
        let ups = with("", &env).unwrap();
        let anthropic = ups.get(Provider::Anthropic).unwrap();
        assert_eq!(
            headers_of(anthropic),
            [
                ("authorization".into(), "Bearer tok".into()),
                ("anthropic-beta".into(), OAUTH_BETA.into())
            ]
        );
        assert_eq!(
            ups.get(Provider::OpenAi)
                .unwrap()
                .uri("/v1/models")
                .unwrap(),
            "http://h:1/v1/models"
        );
    }

    #[test]
    fn a_table_wins_over_the_surroundings_and_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("k"), "sk-file\n").unwrap();
        let creds = dir.path().to_str().unwrap();
        let env = [
            ("ANTHROPIC_API_KEY", "sk-env"),
            ("CREDENTIALS_DIRECTORY", creds),
        ];
        let ups = with("[anthropic]\nkey = { credential = 'k' }", &env).unwrap();
        assert_eq!(
            headers_of(ups.get(Provider::Anthropic).unwrap()),
            [("x-api-key".into(), "sk-file".into())]
        );
        for (text, needle) in [
            ("key = { credential = 'nope' }", "/nope"),
            ("key = { env = 'NOPE' }", "has no NOPE"),
            ("key = 'none'\nbase_url = 'ftp://x'", "ftp://x"),
            ("key = 'none'\nbase_url = 'http://user:pw@x'", "base_url"),
        ] {
            let error = with(&format!("[anthropic]\n{text}"), &env)
                .unwrap_err()
                .to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }

    #[test]
    fn neither_debug_nor_errors_show_a_key() {
        let ups = with("", &[("ANTHROPIC_API_KEY", "sk-very-secret")]).unwrap();
        assert!(!format!("{ups:?}").contains("very-secret"));
        let error = with("", &[("ANTHROPIC_API_KEY", "sk very-secret")]).unwrap_err();
        assert!(
            !format!("{error:?} {error}").contains("very-secret"),
            "{error:?}"
        );
    }
}
