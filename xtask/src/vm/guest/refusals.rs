//! Fail-closed: a policy that wants what this kernel can't give is refused, in words that name it, and nothing runs.

use anyhow::{Context, Result, bail, ensure};

use super::{Bed, Finished, Teller};
use crate::child::capture_any;
use crate::lab::{Lab, Programs, Setup};

/// What `agentctl run` exits with when it could not launch.
const REFUSED: i32 = 125;

/// On a whole kernel: policies that concede nothing run where their plan says so, and are refused with its words elsewhere.
pub fn cases(teller: &Teller, bed: &Bed) -> Result<()> {
    teller.run("refusal.coding", || runs(bed, &[]))?;
    teller.run("refusal.no_concessions", || {
        as_planned(bed, &policy(bed, "[degrade]\nallow = { replace = [] }\n")?)
    })?;
    teller.run("refusal.strict", || as_planned(bed, "strict"))
}

/// A launch does what `policy show --plan` says of it.
fn as_planned(bed: &Bed, policy: &str) -> Result<()> {
    let workspace = bed.workspace()?;
    let mut show = bed.lab.agentctl();
    show.args(["--json", "policy", "show", policy, "--plan", "--workspace"])
        .arg(workspace.path());
    let shown = capture_any(&mut show)?;
    if shown.status.success() {
        return runs(bed, &["--policy", policy]);
    }
    let said = String::from_utf8_lossy(&[shown.stdout, shown.stderr].concat()).into_owned();
    let why = serde_json::from_str::<serde_json::Value>(&said)
        .ok()
        .and_then(|error| Some(error["error"]["why"].as_str()?.to_owned()))
        .with_context(|| format!("a plan is refused without a reason: {said}"))?;
    refused(bed, &["--policy", policy], &why)?;
    Ok(())
}

/// A daemon that can't confine itself does not start, and says what would let it.
pub fn daemon(teller: &Teller, programs: &Programs) -> Result<()> {
    teller.run("refusal.daemon", || {
        match Lab::start(programs.clone(), &Setup::default()) {
            Ok(_) => bail!("agentd started without Landlock"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(said.contains("confine = \"degrade\""), "{said}");
                Ok(())
            }
        }
    })
}

/// On a kernel booted without Landlock and without the memory controller.
pub fn bare(teller: &Teller, bed: &Bed) -> Result<()> {
    teller.run("refusal.file-rules", || {
        refused(bed, &[], "file-rules")?;
        runs(bed, &["--set", "degrade.allow=file-rules"])
    })?;
    teller.run("refusal.memory-limit", || {
        let but = |more: &str| {
            let others = "\"file-rules\", \"memfd-exec\"";
            policy(
                bed,
                &format!("[degrade]\nallow = {{ replace = [{others}{more}] }}\n"),
            )
        };
        refused(bed, &["--policy", &but("")?], "memory-limit")?;
        runs(bed, &["--policy", &but(", \"memory-limit\"")?])
    })
}

/// A file of a policy that is `coding` with `more`.
fn policy(bed: &Bed, more: &str) -> Result<String> {
    let at = bed.lab.directory().join("policy.toml");
    std::fs::write(&at, format!("extends = \"coding\"\n{more}"))
        .with_context(|| format!("write {}", at.display()))?;
    Ok(at.to_string_lossy().into_owned())
}

/// The launch is refused with `why`, and the program did not run.
fn refused(bed: &Bed, options: &[&str], why: &str) -> Result<()> {
    let Finished { code, out, err } = bed.run(options, &["echo", "ran"])?;
    ensure!(out.is_empty(), "the program ran although {why}: {err}");
    ensure!(
        code == Some(REFUSED) && err.contains(why),
        "no refusal that says {why}: {code:?}: {err}"
    );
    Ok(())
}

fn runs(bed: &Bed, options: &[&str]) -> Result<()> {
    let Finished { code, out, err } = bed.run(options, &["echo", "ran"])?;
    ensure!(
        code == Some(0) && out == "ran\n",
        "refused although {} allows it: {code:?}: {err}",
        options.join(" ")
    );
    Ok(())
}
