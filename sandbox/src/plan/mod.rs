//! Policy × launch × host → plan.
//!
//! [`plan`] is a function of its arguments: it opens nothing and asks the host nothing. Whatever the policy
//! demands and the host cannot give either appears in [`SandboxPlan::degradations`], because the policy allows
//! it by name, or refuses the launch with one line ([`PlanRefused`]).

mod env;
mod etc;
mod inputs;
mod landlock;
mod property;
mod refused;
mod summary;
mod surface;
mod view;
mod wire;

pub use inputs::{Access, GrantInput, HomeFile, LaunchInputs, Mode, StdioMode, TrustBundle};
pub use property::{Property, PropertyRow, PropertyStatus};
pub use refused::PlanRefused;
pub use summary::PlanSummary;
use surface::Circumstances;
pub(crate) use view::{PRIVATE, is_private_path, is_system_path};

use crate::denial::DenialRules;
use crate::policy::{EffectivePolicy, Limits, NetMode};
use crate::ports;
use crate::rules::{EgressRules, IpcRules, LimitRules, ModelRules, SshRules, ToolRules};
use crate::runtime::Reach;
use crate::seccomp;
use agentd_kernel::probe::{Feature, HostCaps, Need};
use agentd_launch::{layers, plan as wire_plan};
use serde::Serialize;

/// Something this launch goes without, with somebody's leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Degradation {
    /// The property, such as `memory-limit`.
    pub property: String,
    /// What is missing on this host.
    pub missing: String,
    /// What is lost.
    pub lost: String,
    /// The line of the policy that allows it.
    pub allowed_by: String,
}

/// A listening socket that the launcher makes inside the sandbox and passes out, in the order of `Ready`'s fds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListenerPlan {
    /// A tag of the wire plan: [`agentd_launch::plan::GATEWAY`], `PROXY`, `MCP`, `BUS`, `SSH_AGENT` or `DIRECT`.
    pub tag: u16,
    /// `127.0.0.1:8080` or a path.
    pub address: String,
}

/// What a launch consists of.
#[derive(Debug, Clone, Serialize)]
pub struct SandboxPlan {
    /// For the launcher, by way of the broker.
    #[serde(skip)]
    pub wire: Vec<u8>,
    pub summary: PlanSummary,
    pub degradations: Vec<Degradation>,
    /// `LAYER_*` bits that must be active or the launcher fails.
    pub required_layers: u64,
    pub listeners: Vec<ListenerPlan>,
    /// Placeholders may have to be made on the host, and removed when the sandbox has ended.
    pub keeps_names: bool,
    pub egress: EgressRules,
    pub model: ModelRules,
    pub ipc: IpcRules,
    pub tools: ToolRules,
    pub ssh: SshRules,
    /// The lines that refusals of the kernel come from.
    #[serde(skip)]
    pub denials: DenialRules,
    pub limits: Limits,
    /// What the agent's cgroup is held to on this host.
    #[serde(skip)]
    pub cgroup: LimitRules,
    pub policy: String,
    /// SHA-256 of the canonical effective policy, in hex.
    pub policy_hash: String,
}

/// Joins policy, launch and host.
pub fn plan(
    policy: &EffectivePolicy,
    inputs: &LaunchInputs,
    host: &HostCaps,
) -> Result<SandboxPlan, PlanRefused> {
    if host.machine != "x86_64" {
        return Err(PlanRefused::Machine {
            machine: host.machine.clone(),
        });
    }
    inputs.check()?;
    host_network(policy)?;
    let runtime = policy.runtime.runtime();
    runtime.check(policy, host)?;
    required_features(host)?;
    let circumstances = Circumstances {
        policy,
        inputs,
        host,
    };
    let properties = property::statuses(circumstances);
    let degradations = settle(policy, inputs, &properties, host)?;
    depth(policy, &properties)?;
    let view = view::view(policy, inputs)?;
    let listeners = listeners(policy, inputs);
    let required_layers = required_layers(circumstances);
    let surface = circumstances.surface();
    let parts = wire::Parts {
        policy,
        inputs,
        landlock_abi: host.landlock_abi.min(landlock::WRITTEN_FOR),
        cgroup: cgroup_limits(policy, host).cgroup(),
        env: env::environment(policy, inputs, &view.home, view.program.as_deref(), |p| {
            view.shows(p)
        }),
        view,
        listeners: &listeners,
        required_layers,
        filter: seccomp::compile(&surface),
        surface,
        exec: circumstances.exec_flags(),
        gvisor: runtime.gvisor(host),
        ports: circumstances.ports().map(<[u16]>::to_vec),
    };
    let wire = parts.encode()?;
    let summary = summary::summary(&parts, properties);
    Ok(SandboxPlan {
        keeps_names: parts.view.keeps_names(),
        wire,
        summary,
        degradations,
        required_layers,
        listeners,
        egress: policy.egress.clone(),
        model: policy.model.clone(),
        ipc: IpcRules {
            shared_memory: policy.ipc.shared_memory && runtime.shares_memory(),
            ..policy.ipc.clone()
        },
        tools: policy.tools.clone(),
        ssh: policy.ssh.clone(),
        denials: DenialRules::new(policy, inputs),
        limits: policy.limits.clone(),
        cgroup: cgroup_limits(policy, host),
        policy: policy.name.clone(),
        policy_hash: policy.hash(),
    })
}

/// The gateway's listener is what tells an agent's requests from everybody else's: it can't be where everybody is.
fn host_network(policy: &EffectivePolicy) -> Result<(), PlanRefused> {
    if policy.net.mode != NetMode::Host || !policy.model.enabled {
        return Ok(());
    }
    Err(PlanRefused::Input {
        what: format!(
            "net.mode = \"host\" ({}) with model.access = \"gateway\" ({})",
            policy.origin_of("net.mode"),
            policy.origin_of("model.access")
        ),
        problem: "the gateway listens on an agent's own loopback, and in the host's network everybody could spend its tokens there".into(),
        allowed: "set model.access = \"none\", or net.mode = \"proxy\"".into(),
    })
}

/// What no policy can do without.
fn required_features(host: &HostCaps) -> Result<(), PlanRefused> {
    let missing = host
        .probes
        .iter()
        .find(|p| p.need == Need::Required && !p.is_supported());
    match missing {
        None => Ok(()),
        Some(p) => Err(PlanRefused::Required {
            property: p.name.clone(),
            missing: p.why().unwrap_or_default(),
            fix: p.fix.clone().map_or_else(
                || "see agentctl doctor".into(),
                |f| format!("to get it: {f}"),
            ),
        }),
    }
}

/// Each property without a mechanism is either allowed to be missing, by a line of the policy, or refuses the launch.
fn settle(
    policy: &EffectivePolicy,
    inputs: &LaunchInputs,
    properties: &[PropertyStatus],
    host: &HostCaps,
) -> Result<Vec<Degradation>, PlanRefused> {
    let mut out = Vec::new();
    for status in properties.iter().filter(|s| s.by.is_empty()) {
        let property = status.property;
        let missing = status.without.join("; ");
        let allowed_by = match policy.degrade.iter().find(|d| d.value == property) {
            Some(line) => line.origin.to_string(),
            // There is no other user mode: whoever starts agentd without root has chosen it.
            None if property.is_of_root_mode() && inputs.mode == Mode::User => "user mode".into(),
            None if property.is_degradable() => {
                return Err(PlanRefused::Property {
                    property: property.name().into(),
                    missing,
                    fix: property.fix(host),
                });
            }
            None => {
                return Err(PlanRefused::Required {
                    property: property.name().into(),
                    missing,
                    fix: "no policy can launch without it; see agentctl doctor".into(),
                });
            }
        };
        out.push(Degradation {
            property: property.name().into(),
            missing,
            lost: property.promise().into(),
            allowed_by,
        });
    }
    Ok(out)
}

/// A policy that demands depth is refused where this kernel has a further mechanism for a property, but not for agentd. What
/// the kernel is too old for does not exist, and is not missed.
fn depth(policy: &EffectivePolicy, properties: &[PropertyStatus]) -> Result<(), PlanRefused> {
    let shallow = properties
        .iter()
        // One with no mechanism at all was settled before: its line allows it to be missing.
        .filter(|s| !s.by.is_empty())
        .find(|s| s.by.len() < usize::from(policy.mechanisms) && !s.denied.is_empty());
    let Some(status) = shallow else {
        return Ok(());
    };
    let line = policy.shown.iter().find(|s| s.key == "degrade.mechanisms");
    Err(PlanRefused::Depth {
        property: status.property.name().into(),
        by: status.by.join(", "),
        denied: status.denied.join("; "),
        mechanisms: policy.mechanisms,
        demanded_by: line.map_or_else(String::new, |l| l.origin.to_string()),
    })
}

fn listeners(policy: &EffectivePolicy, inputs: &LaunchInputs) -> Vec<ListenerPlan> {
    let tcp = |tag, port| ListenerPlan {
        tag,
        address: format!("127.0.0.1:{port}"),
    };
    let mut out = Vec::new();
    // In the host's network everybody could connect to one.
    let own_network = policy.net.mode != NetMode::Host;
    if policy.model.enabled {
        out.push(tcp(wire_plan::GATEWAY, ports::GATEWAY));
    }
    if policy.egress.enabled {
        out.push(tcp(wire_plan::PROXY, ports::PROXY));
    }
    if own_network {
        out.push(tcp(wire_plan::MCP, ports::MCP));
    }
    // Whoever shares memory has a quicker way than through sockets. gVisor's sockets are not this kernel's.
    let by_socket = !policy.ipc.shared_memory && policy.runtime.runtime().shares_memory();
    if own_network && by_socket && inputs.direct {
        out.push(tcp(wire_plan::DIRECT, ports::DIRECT));
    }
    out.push(ListenerPlan {
        tag: wire_plan::BUS,
        address: ports::BUS_SOCKET.into(),
    });
    if policy.ssh.enabled {
        out.push(ListenerPlan {
            tag: wire_plan::SSH_AGENT,
            address: ports::SSH_AGENT_SOCKET.into(),
        });
    }
    out
}

/// What of the policy's limits this host's cgroups can hold.
fn cgroup_limits(policy: &EffectivePolicy, host: &HostCaps) -> LimitRules {
    let limits = &policy.limits;
    LimitRules {
        memory_bytes: limits
            .memory_bytes
            .filter(|_| host.has(Feature::CgroupMemory)),
        pids: limits.pids.filter(|_| host.has(Feature::CgroupPids)),
        cpu_percent: limits.cpu_percent.filter(|_| host.has(Feature::CgroupCpu)),
        own_processes: policy.runtime.runtime().own_processes(),
    }
}

/// The layers that this host can make and this plan uses: each is then demanded, so none is lost in silence.
fn required_layers(circumstances: Circumstances<'_>) -> u64 {
    let Circumstances {
        policy,
        inputs,
        host,
    } = circumstances;
    let mut bits =
        layers::floor_layers(wire::network(policy)) | layers::LAYER_UTS_NS | layers::LAYER_RLIMITS;
    let mut add = |condition: bool, layer: u64| {
        if condition {
            bits |= layer;
        }
    };
    add(host.has(Feature::CgroupNs), layers::LAYER_CGROUP_NS);
    add(host.has(Feature::TimeNs), layers::LAYER_TIME_NS);
    let files = circumstances.reaches(Reach::LandlockFiles);
    let scopes = circumstances.ports().is_some() || host.landlock_abi >= landlock::SCOPES_ABI;
    add(
        host.landlock_abi > 0 && (files || scopes),
        layers::LAYER_LANDLOCK,
    );
    add(circumstances.ports().is_some(), layers::LAYER_LANDLOCK_NET);
    add(
        !policy.exec.write_exec && host.has(Feature::Mdwe) && circumstances.reaches(Reach::Mdwe),
        layers::LAYER_MDWE,
    );
    add(
        circumstances.sets_memfd_noexec(),
        layers::LAYER_MEMFD_NOEXEC,
    );
    add(
        cgroup_limits(policy, host).cgroup().required,
        layers::LAYER_CGROUP_LIMITS,
    );
    let idmap =
        inputs.mode == Mode::Root && host.has(Feature::IdmappedMounts) && !inputs.grants.is_empty();
    add(idmap, layers::LAYER_IDMAP);
    bits | circumstances.runtime().layers()
}
