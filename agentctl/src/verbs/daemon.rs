//! `version` and `shutdown`: the daemon as a whole.

use serde_json::{Value, json};

use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::Out;
use crate::resolve::Context;

/// Our version, and the daemon's if there is one.
pub async fn version(context: &Context) -> Result<u8, Failure> {
    let daemon = match Daemon::connect(context).await {
        Ok(daemon) => {
            let info = daemon.manager().await?.ping().await;
            Some(info.map_err(|e| Failure::api("can't ask agentd for its version", &e))?)
        }
        Err(failure) if failure.is_unreachable() => None,
        Err(failure) => return Err(failure),
    };
    let mut out = Out::stdout();
    if context.is_json() {
        let daemon = daemon.as_ref().map_or(Value::Null, |d| d.to_json());
        out.json(&json!({
            "agentctl": { "version": agentd_api::VERSION, "api_version": agentd_api::API_VERSION },
            "agentd": daemon,
        }))?;
        return Ok(0);
    }
    out.line(format!(
        "agentctl {} (API {})",
        agentd_api::VERSION,
        agentd_api::API_VERSION
    ))?;
    match daemon {
        Some(d) => out.line(format!(
            "agentd   {} (API {}), {} mode, pid {}",
            d.version, d.api_version, d.mode, d.pid
        ))?,
        None => out.line("agentd   not running")?,
    }
    out.flush()?;
    Ok(0)
}

pub async fn shutdown(context: &Context) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let manager = daemon.manager().await?;
    manager
        .shutdown()
        .await
        .map_err(|e| Failure::api("can't end agentd", &e))?;
    if context.is_json() {
        Out::stdout().json(&json!({ "shutdown": daemon.runtime_dir }))?;
    }
    Ok(0)
}
