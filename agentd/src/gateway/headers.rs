//! Which headers pass the gateway, in either direction. Everything else is dropped.
//!
//! Pure. Lists of what passes, not of what doesn't: a header nobody thought of carries neither credentials of the
//! agent's to the provider, nor cookies and account names of the provider's to the agent.

use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER, USER_AGENT,
};

/// Passes from the agent to the provider.
fn request_passes(name: &HeaderName) -> bool {
    const NAMES: [&str; 6] = [
        "anthropic-version",
        "anthropic-beta",
        "openai-beta",
        "x-app",
        "x-claude-code-session-id",
        "idempotency-key",
    ];
    [CONTENT_TYPE, ACCEPT, USER_AGENT].contains(name)
        || NAMES.contains(&name.as_str())
        || name.as_str().starts_with("x-stainless-")
}

/// Passes from the provider to the agent.
fn response_passes(name: &HeaderName) -> bool {
    const NAMES: [&str; 4] = [
        "request-id",
        "x-request-id",
        "x-should-retry",
        "retry-after-ms",
    ];
    [CONTENT_TYPE, CACHE_CONTROL, RETRY_AFTER].contains(name)
        || NAMES.contains(&name.as_str())
        || name.as_str().starts_with("anthropic-ratelimit-")
        || name.as_str().starts_with("x-ratelimit-")
}

/// The headers of a request that go on to the provider.
pub fn for_provider(from_agent: &HeaderMap) -> HeaderMap {
    passing(from_agent, request_passes)
}

/// The headers of an answer that go back to the agent.
pub fn for_agent(from_provider: &HeaderMap) -> HeaderMap {
    passing(from_provider, response_passes)
}

fn passing(headers: &HeaderMap, passes: fn(&HeaderName) -> bool) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        if passes(name) {
            out.append(name, value.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn kept(names: &[&'static str], by: fn(&HeaderMap) -> HeaderMap) -> Vec<String> {
        let headers: HeaderMap = names
            .iter()
            .map(|n| (HeaderName::from_static(n), HeaderValue::from_static("v")))
            .collect();
        by(&headers).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn credentials_and_hop_by_hop_headers_of_the_agent_stay() {
        let names = [
            "authorization",
            "x-api-key",
            "api-key",
            "cookie",
            "proxy-authorization",
            "connection",
            "te",
            "upgrade",
            "transfer-encoding",
            "content-length",
            "host",
            "accept-encoding",
            "expect",
            "x-forwarded-for",
            "openai-organization",
            "anthropic-dangerous-direct-browser-access",
            "x-http-method-override",
        ];
        assert!(kept(&names, for_provider).is_empty());
        assert_eq!(
            kept(
                &["content-type", "anthropic-beta", "x-stainless-os"],
                for_provider
            )
            .len(),
            3
        );
    }

    #[test]
    fn account_headers_of_the_provider_stay() {
        let names = [
            "set-cookie",
            "anthropic-organization-id",
            "openai-organization",
            "content-length",
            "server",
        ];
        assert!(kept(&names, for_agent).is_empty());
        assert_eq!(
            kept(
                &["request-id", "anthropic-ratelimit-tokens-limit"],
                for_agent
            )
            .len(),
            2
        );
    }
}
