//! Asking polkit whether a caller on the system bus may do what its own rights don't cover.
//!
//! One call to `org.freedesktop.PolicyKit1` for each question, about the caller's unique name on the bus, never about a
//! uid or pid that could have changed hands. The actions are in `systemd/polkit-1/org.agentd1.policy`. Fails closed: no answer
//! is a refusal; only a bus on which nobody offers polkit at all is [`Verdict::Absent`].

use std::collections::HashMap;

use zbus::names::OwnedUniqueName;
use zbus::{Connection, Variant};

/// What polkit is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Launch,
    ManageAgents,
    ManageUnits,
    DecideApprovals,
    Shutdown,
}

impl Action {
    /// The id in the action file.
    pub fn id(self) -> &'static str {
        match self {
            Self::Launch => "org.agentd1.launch",
            Self::ManageAgents => "org.agentd1.manage-agents",
            Self::ManageUnits => "org.agentd1.manage-units",
            Self::DecideApprovals => "org.agentd1.decide-approvals",
            Self::Shutdown => "org.agentd1.shutdown",
        }
    }
}

/// Whether polkit may ask the person for a password: only if the caller allowed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Silently,
    MayAskThePerson,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Refused,
    /// There is no polkit here.
    Absent,
}

#[zbus::proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority"
)]
trait Authority {
    fn check_authorization(
        &self,
        subject: &(&str, HashMap<&str, Variant<'_>>),
        action_id: &str,
        details: &HashMap<&str, &str>,
        flags: u32,
        cancellation_id: &str,
    ) -> zbus::Result<(bool, bool, HashMap<String, String>)>;
}

/// `AllowUserInteraction` of `CheckAuthorizationFlags`.
const ALLOW_USER_INTERACTION: u32 = 1;

/// Asks whether `peer` may do `action`.
pub async fn check(
    bus: &Connection,
    peer: &OwnedUniqueName,
    action: Action,
    asked: Asked,
) -> Verdict {
    let subject = (
        "system-bus-name",
        HashMap::from([("name", Variant::from(peer.as_str()))]),
    );
    let flags = match asked {
        Asked::Silently => 0,
        Asked::MayAskThePerson => ALLOW_USER_INTERACTION,
    };
    let answer = async {
        let authority = AuthorityProxy::builder(bus)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        authority
            .check_authorization(&subject, action.id(), &HashMap::new(), flags, "")
            .await
    };
    match answer.await {
        Ok((true, _, _)) => Verdict::Allowed,
        Ok((false, _, _)) => Verdict::Refused,
        Err(error) if nobody_offers_it(&error) => Verdict::Absent,
        Err(error) => {
            tracing::warn!(%peer, action = action.id(), "polkit gave no answer, so no: {error}");
            Verdict::Refused
        }
    }
}

fn nobody_offers_it(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, _, _)
        if matches!(name.as_str(), "org.freedesktop.DBus.Error.ServiceUnknown" | "org.freedesktop.DBus.Error.NameHasNoOwner"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_in_the_installed_file_and_belongs_to_the_daemons_user() {
        let file = include_str!("../../../systemd/polkit-1/org.agentd1.policy");
        for action in [
            Action::Launch,
            Action::ManageAgents,
            Action::ManageUnits,
            Action::DecideApprovals,
            Action::Shutdown,
        ] {
            let (_, entry) = file
                .split_once(&format!("<action id=\"{}\">", action.id()))
                .expect("in the file");
            let (entry, _) = entry.split_once("</action>").expect("closed");
            // Without it polkit lets nobody but root ask about others.
            assert!(
                entry.contains("org.freedesktop.policykit.owner\">unix-user:agentd<"),
                "{action:?}"
            );
            let cautious = entry.contains("<allow_any>auth_admin</allow_any>");
            assert_eq!(cautious, action != Action::Launch, "{action:?}");
        }
    }
}
