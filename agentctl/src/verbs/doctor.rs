//! `doctor`: what this host can do, what is lost without the rest, and the command that would give it.
//!
//! Needs no daemon: the same probes that the daemon runs are run here, with the caller's rights. Exit
//! code 1 only if something is missing without which nothing can be launched.

mod plane;
mod refusals;

use agentd_api::denials::{DenialLayer, DenialsProxy};
use agentd_api::{DaemonInfo, PlaneGroup};
use agentd_kernel::probe::{HostCaps, Need, Probe, ProbeState, Roots, probe_host};
use serde_json::{Value, json};

use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Out, Style};
use crate::resolve::Context;
use plane::Plane;

/// A transport that is not there, and what it would take.
const NO_RDMA: &str = "bus over RDMA or GPU memory: not in this version; it would need an RDMA adapter (or the rdma_rxe module) \
                       with rdma-core, or a GPU with peer memory";

pub async fn doctor(context: &Context) -> Result<u8, Failure> {
    let host = probe_host(&Roots::default());
    let daemon = find_daemon(context).await;
    let plane = match &daemon {
        // An older daemon does not say.
        Found::Running(Running {
            info,
            plane: Some(groups),
            ..
        }) => Plane::of_daemon(groups.clone(), info.mode, &host),
        Found::Running(_) | Found::Absent(_) => Plane::probed(&host),
    };
    let fit = host
        .probes
        .iter()
        .all(|p| p.is_supported() || p.need != Need::Required);
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&to_json(&host, &plane, &daemon, fit)?)?;
    } else {
        print(&host, &plane, &daemon, fit, &mut out)?;
        out.flush()?;
    }
    Ok(u8::from(!fit))
}

/// Whether a daemon answers.
enum Found {
    Running(Running),
    Absent(Failure),
}

/// A daemon's word about itself, the kernel plane and the layers that refuse; `None` where it gives none.
struct Running {
    info: Box<DaemonInfo>,
    plane: Option<Vec<PlaneGroup>>,
    layers: Option<Vec<DenialLayer>>,
}

async fn find_daemon(context: &Context) -> Found {
    let ask = async {
        let daemon = Daemon::connect(context).await?;
        let manager = daemon.manager().await?;
        let info = manager.ping().await;
        let info = info.map_err(|e| Failure::api("can't ask agentd", &e))?;
        let layers = match DenialsProxy::new(&daemon.connection).await {
            Ok(denials) => denials.layers().await.ok(),
            Err(_) => None,
        };
        Ok(Running {
            info: Box::new(info),
            plane: manager.kernel_plane().await.ok(),
            layers,
        })
    };
    ask.await.map_or_else(Found::Absent, Found::Running)
}

fn to_json(host: &HostCaps, plane: &Plane, daemon: &Found, fit: bool) -> Result<Value, Failure> {
    let broken = |e| Failure::local("can't write the report", e);
    let mut report = serde_json::to_value(host).map_err(broken)?;
    let probes = host.probes.iter().map(|probe| {
        let mut value = serde_json::to_value(probe)?;
        value["required"] = json!(probe.need == Need::Required);
        Ok(value)
    });
    report["probes"] = probes
        .collect::<Result<_, serde_json::Error>>()
        .map_err(broken)?;
    report["ok"] = json!(fit);
    report["plane"] = plane.to_json();
    report["daemon"] = match daemon {
        Found::Running(Running { info, layers, .. }) => {
            report["denials"] = layers.as_deref().map_or(Value::Null, refusals::to_json);
            let mut value = info.to_json();
            value["reachable"] = json!(true);
            value
        }
        Found::Absent(failure) => json!({ "reachable": false, "why": failure.why }),
    };
    Ok(report)
}

fn print(
    host: &HostCaps,
    plane: &Plane,
    daemon: &Found,
    fit: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let rights = if host.euid == 0 {
        "root".to_owned()
    } else {
        format!("uid {}", host.euid)
    };
    out.line(format!(
        "Linux {} on {}, as {rights}",
        host.kernel, host.machine
    ))?;
    for (need, heading) in [
        (Need::Required, "Required: nothing can be launched without"),
        (
            Need::Degrade,
            "Protection: missing only if the policy allows it by name",
        ),
        (Need::Optional, "Optional"),
    ] {
        let heading = out.colour.paint(Style::Bold, heading);
        out.line("")?;
        out.line(heading)?;
        for probe in host.probes.iter().filter(|p| p.need == need) {
            print_probe(probe, out)?;
        }
    }
    plane.print(out)?;
    if let Found::Running(Running {
        layers: Some(layers),
        ..
    }) = daemon
    {
        refusals::print(layers, out)?;
    }
    out.line("")?;
    let heading = out.colour.paint(Style::Bold, "Daemon");
    out.line(heading)?;
    match daemon {
        Found::Running(Running { info, .. }) => {
            let mark = out.colour.paint(Style::Good, "✓");
            let place = info.runtime_dir.as_deref().unwrap_or("?");
            out.line(format!(
                "  {mark} agentd {} in {} mode, pid {}, serving in {place}",
                info.version, info.mode, info.pid
            ))?;
            if let Some(gateway) = &info.bus_gateway {
                out.line(format!("  {mark} socket gateway of the bus over {gateway}"))?;
            }
        }
        Found::Absent(failure) => {
            out.line(format!("  – {failure}"))?;
            if let Some(next) = &failure.next {
                out.line(format!("      fix: {next}"))?;
            }
        }
    }
    out.line(format!("  – {NO_RDMA}"))?;
    out.line("")?;
    out.line(if fit {
        out.colour
            .paint(Style::Good, "Agents can be launched here.")
    } else {
        out.colour.paint(
            Style::Bad,
            "Agents can't be launched here: see the crosses above.",
        )
    })
}

/// ✓ works, ✗ missing and needed for protection, – missing and optional.
fn print_probe(probe: &Probe, out: &mut Out) -> Result<(), Failure> {
    let (mark, style) = match (&probe.state, probe.need) {
        (ProbeState::Supported, _) => ("✓", Style::Good),
        (_, Need::Required) => ("✗", Style::Bad),
        (_, Need::Degrade) => ("✗", Style::Warn),
        (_, Need::Optional) => ("–", Style::Dim),
    };
    let mark = out.colour.paint(style, mark);
    let detail = probe.detail.as_deref().unwrap_or_default();
    let Some(why) = probe.why() else {
        let line = format!("  {mark} {:<18} {detail}", probe.name);
        return out.line(line.trim_end());
    };
    out.line(format!("  {mark} {:<18} {why}", probe.name))?;
    out.line(format!("      lost: {}", probe.lost))?;
    match &probe.fix {
        Some(fix) => out.line(format!("      fix: {fix}")),
        None => Ok(()),
    }
}
