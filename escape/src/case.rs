//! What a case is: an attack as data, with how its success shows, what of a policy opens it, and where it can't work.
//!
//! Pure. The code that tries stands in [`crate::cases`], the code that looks for the effect in [`crate::judge`].

use serde::Serialize;

use crate::raw::Refused;
use crate::scene::Scene;

/// One attack.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Case {
    /// Stable; what reports and mails name.
    pub id: &'static str,
    #[serde(skip_deserializing)]
    pub family: &'static str,
    pub title: &'static str,
    pub effect: Effect,
    pub opens: Opening,
    /// Why it can't succeed for an ordinary user without any sandbox; nothing where it does.
    pub cannot: Option<&'static str>,
    /// It wants a session of its own: what is raised for it may be reason enough to refuse the launch.
    pub alone: bool,
    /// What a kernel in user space does with it instead of the host's, and why nothing of that reaches the host. Only for
    /// cases that no effect on the host could show.
    pub emulated: Option<&'static str>,
    /// It uses up what the sandbox has. A runtime with a kernel of its own may end with it, which is no hole; there it gets
    /// a session of its own, too.
    pub exhausts: bool,
    /// When it has not answered by then, it is ended, in seconds.
    pub limit: u32,
    #[serde(skip)]
    pub run: fn(&Scene) -> Try,
}

/// What came of an attempt, from inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The kernel did it; what exactly.
    Done(String),
    /// It gave these bytes; whether they are the secret only the host knows.
    Loot(Vec<u8>),
    /// This kernel or machine hasn't got what the attack needs.
    Unavailable(String),
}

/// An attempt, or the refusal that ended it.
pub type Try = Result<Attempt, Refused>;

/// How success shows on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Only inside: the kernel did what it should refuse (a system call, a mapping, a socket).
    Inside,
    /// What was read holds the secret of this run.
    Secret,
    /// What was read is what stands in this file of the host.
    SameAs(&'static str),
    /// The case's own file in the folder outside the view, or a new name beside it.
    Outside,
    /// The case's own file in the folder that is granted read-only, or a new name beside it.
    Shared,
    /// A name of the workspace that runs or hides something: it changed, went or came.
    Workspace(&'static str),
    /// A name in the caller's HOME.
    Home(&'static str),
    /// A set-id bit on the case's own file in the workspace.
    SetId,
    /// The case's own file in the workspace belongs to somebody else than the caller.
    GivenAway,
    /// A file of this name, with the run's mark before it, in this folder of the host.
    HostFile(&'static str),
    /// A server or socket of the host heard the case's name.
    Heard,
    /// The victim process changed.
    Victim(Hurt),
    /// A process with the case's mark is alive after the session has ended.
    Lives,
    /// The case's own place in the workspace holds as many bytes as this, on disk.
    Disk(u64),
    /// The case's own folder in the workspace holds as many names as this.
    Names(u64),
}

/// What can be done to the victim process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hurt {
    /// It got this signal; each case has its own.
    Signal(i32),
    Nice,
    Affinity,
    Policy,
    IoPriority,
    Limit,
    Score,
    Slack,
    Group,
    Dump,
    /// A word in its memory.
    Memory,
    /// Traced, or stopped.
    Traced,
}

/// The value of a policy that opens a case on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opening {
    Never,
    /// The list under this key has this value.
    Has(&'static str, &'static str),
    /// The key has this value.
    Is(&'static str, &'static str),
    /// The limit is above this, or there is none. In user mode also the line that allows to go without the property.
    Above(&'static str, u64, &'static str),
    /// The policy lets this property go by name, and the program is on a kernel in user space, which does not hold it.
    LetGo(&'static str),
    /// Any of them.
    Any(&'static [Opening]),
}

impl Case {
    pub const fn new(id: &'static str, title: &'static str, run: fn(&Scene) -> Try) -> Self {
        Self {
            id,
            family: "",
            title,
            effect: Effect::Inside,
            opens: Opening::Never,
            cannot: None,
            alone: false,
            emulated: None,
            exhausts: false,
            limit: 10,
            run,
        }
    }

    pub const fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    /// It reads the run's secret.
    pub const fn secret(self) -> Self {
        self.effect(Effect::Secret)
    }

    pub const fn opens(mut self, opens: Opening) -> Self {
        self.opens = opens;
        self
    }

    /// It can't succeed even without a sandbox, for this reason.
    pub const fn cannot(mut self, why: &'static str) -> Self {
        self.cannot = Some(why);
        self
    }

    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// On a kernel in user space it is done by that kernel, for this reason without any effect on the host.
    pub const fn emulated(mut self, why: &'static str) -> Self {
        self.emulated = Some(why);
        self
    }

    pub const fn exhausts(mut self) -> Self {
        self.exhausts = true;
        self
    }

    pub const fn limit(mut self, seconds: u32) -> Self {
        self.limit = seconds;
        self
    }

    pub(crate) const fn of(mut self, family: &'static str) -> Self {
        self.family = family;
        self
    }
}
