//! Where an agent finds its services: fixed places inside every sandbox.
//!
//! The ports are on the loopback of the sandbox's own network namespace, so two agents never share one.

/// The model gateway (Anthropic and OpenAI shapes).
pub const GATEWAY: u16 = 8080;
/// The egress proxy (CONNECT and absolute-form HTTP).
pub const PROXY: u16 = 3128;
/// The MCP server of the bus.
pub const MCP: u16 = 8765;
/// The direct connection to other agents, where the kernel carries it.
pub const DIRECT: u16 = 7203;
/// The bus socket in the sandbox's mount view.
pub const BUS_SOCKET: &str = "/run/agentd/bus.sock";
/// The filtered ssh-agent in the sandbox's mount view.
pub const SSH_AGENT_SOCKET: &str = "/run/agentd/ssh-agent.sock";

/// The folder of `[secrets] files` in the sandbox's mount view.
pub const SECRETS: &str = "/run/agentd/secrets";

/// The base URL that Anthropic clients are given.
pub const GATEWAY_URL: &str = "http://127.0.0.1:8080";
/// The base URL that OpenAI clients are given.
pub const GATEWAY_OPENAI_URL: &str = "http://127.0.0.1:8080/v1";
/// What HTTP_PROXY and HTTPS_PROXY are set to.
pub const PROXY_URL: &str = "http://127.0.0.1:3128";
/// Where MCP is served.
pub const MCP_URL: &str = "http://127.0.0.1:8765/mcp";
/// What stands where a key would; the gateway replaces it, so no real key enters a sandbox.
pub const PLACEHOLDER_KEY: &str = "agentd-gateway";
