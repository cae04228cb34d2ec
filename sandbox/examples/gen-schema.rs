//! Prints the JSON schema of policy files: `cargo run -p agentd-sandbox --example gen-schema`. `cargo xtask gen` calls this.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let schema = agentd_sandbox::policy::json_schema();
    let mut text = serde_json::to_vec_pretty(&schema)?;
    text.push(b'\n');
    std::io::stdout().write_all(&text)
}
