//! `[model]` of the daemon's configuration: where the providers are and where their keys lie.
//!
//! A key itself never stands here, only where to read it. Pure data; [`super::Upstreams::from_config`] reads the
//! keys, and an unknown name in the file is refused by serde with the names that are allowed.

use std::path::PathBuf;

use serde::Deserialize;

/// The `[model]` table.
///
/// A provider without a table is looked for in the daemon's surroundings: see [`super::Upstreams::from_config`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// `[model.anthropic]`.
    pub anthropic: Option<ProviderConfig>,
    /// `[model.openai]`.
    pub openai: Option<ProviderConfig>,
    /// How long to wait for a connection to the provider, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long to wait for the provider's first byte, in milliseconds. Answers that aren't streamed arrive as a
    /// whole, so this bounds the time a model may think.
    pub answer_timeout_ms: u64,
    /// How long a stream may stay silent, in milliseconds.
    pub idle_timeout_ms: u64,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            anthropic: None,
            openai: None,
            connect_timeout_ms: 15_000,
            answer_timeout_ms: 600_000,
            idle_timeout_ms: 300_000,
        }
    }
}

/// One provider.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Base URL without `/v1`: `https://api.anthropic.com`. The provider's own when absent.
    pub base_url: Option<String>,
    /// Where the key is.
    pub key: KeySource,
    /// What kind of key it is.
    #[serde(default)]
    pub auth: Auth,
}

/// Where a key is read from, once, before the daemon gives up its rights.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// The provider wants none (a model server on this machine).
    None,
    /// The first line of this file.
    File(PathBuf),
    /// This environment variable of the daemon.
    Env(String),
    /// This systemd credential (`LoadCredential=`): a file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// What kind of key it is, so in which header it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Auth {
    /// An API key: `x-api-key` for Anthropic, `authorization: Bearer` for OpenAI.
    #[default]
    ApiKey,
    /// The token of a subscription (`claude setup-token`): always `authorization: Bearer`.
    Subscription,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn each_key_source_is_written_as_documented() {
        for (text, want) in [
            ("{ file = '/etc/k' }", KeySource::File("/etc/k".into())),
            ("{ env = 'K' }", KeySource::Env("K".into())),
            ("{ credential = 'k' }", KeySource::Credential("k".into())),
            ("'none'", KeySource::None),
        ] {
            let config =
                parse(&format!("[anthropic]\nkey = {text}\nauth = 'subscription'")).unwrap();
            let provider = config.anthropic.unwrap();
            assert_eq!((provider.key, provider.auth), (want, Auth::Subscription));
        }
    }

    #[test]
    fn a_key_written_into_the_file_is_refused_without_repeating_the_file() {
        let error = parse("[anthropic]\nkey = 'sk-secret'").unwrap_err();
        assert!(error.message().contains("expected one of"), "{error}");
        assert!(
            parse("[antropic]\nkey = 'none'")
                .unwrap_err()
                .message()
                .contains("antropic")
        );
    }
}
