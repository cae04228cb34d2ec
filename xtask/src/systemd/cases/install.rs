//! Put there as a package would, and taken away again.

use anyhow::{Result, ensure};

use super::{Lab, USERS};
use crate::systemd::install::{purge, put, take_away};

/// Where anything of the product may be. Read before and after, so that what the host itself has of it doesn't count.
const PLACES: [&str; 8] = [
    "/etc",
    "/usr/bin",
    "/usr/lib",
    "/usr/share",
    "/var/lib",
    "/run",
    "/dev/shm",
    "/sys/fs/cgroup",
];

/// Files and users named after the product.
fn traces(lab: &Lab<'_>) -> Result<String> {
    let mut find = vec!["find"];
    find.extend(PLACES);
    find.extend(["-maxdepth", "4"]);
    find.extend([
        "-path",
        "/run/host",
        "-prune",
        "-o",
        "-path",
        "/run/log",
        "-prune",
        "-o",
    ]);
    find.extend([
        "-iname",
        "*agentd*",
        "-not",
        "-iname",
        "agentd-bed*",
        "-print",
    ]);
    find.extend(["-o", "-name", "agentctl*", "-print"]);
    let files = lab.bed.run(&find)?;
    let users = lab.bed.run(&[
        "sh",
        "-c",
        "grep -h agentd /etc/passwd /etc/group /etc/shadow /etc/gshadow; true",
    ])?;
    Ok(format!("{files}\n{users}"))
}

pub fn everything_is_there(lab: &Lab<'_>) -> Result<()> {
    // What the host itself has of it is below the overlay: gone in the bed, untouched on the host.
    let pinned = super::plane::pins(lab)?;
    ensure!(pinned.is_empty(), "still pinned: {pinned}");
    take_away(&lab.items, &lab.bed.root())?;
    purge(&lab.bed.root())?;
    let before = traces(lab)?;
    ensure!(
        before.trim().is_empty(),
        "the host's own agentd shows in the bed: {before}"
    );
    put(&lab.items, &lab.bed.root())?;
    lab.bed.run(&["systemd-sysusers"])?;
    lab.bed
        .run(&["systemd-tmpfiles", "--create", "agentd.conf"])?;
    lab.systemctl(&["daemon-reload"])?;
    for item in &lab.items {
        ensure!(
            lab.bed.root().join(&item.target).is_file(),
            "{} is not there",
            item.target.display()
        );
    }
    let user = lab.bed.run(&["getent", "passwd", "agentd"])?;
    ensure!(
        user.ends_with(":/var/lib/agentd:/usr/sbin/nologin"),
        "the user is {user}"
    );
    let directory = lab.bed.run(&["stat", "-c", "%U:%G %a", "/run/agentd"])?;
    ensure!(
        directory == "agentd:agentd 755",
        "/run/agentd is {directory}"
    );
    let mut verify = lab.bed.command("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for item in &lab.items {
        if item.target.starts_with("usr/lib/systemd/system") {
            verify.arg(std::path::Path::new("/").join(&item.target));
        }
    }
    let verified = crate::child::capture_any(&mut verify)?;
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    // The distribution's own units may be talked of; ours may not.
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("agentd"))
        .collect();
    ensure!(ours.is_empty(), "systemd-analyze verify: {ours:?}");
    for user in USERS {
        lab.bed
            .run(&["useradd", "--create-home", "--user-group", user])?;
    }
    Ok(())
}

pub fn uninstall_leaves_nothing(lab: &Lab<'_>) -> Result<()> {
    lab.systemctl(&[
        "disable",
        "--now",
        "--quiet",
        "agentd.socket",
        "agentd-broker.socket",
        "agentd.service",
        "agentd-broker.service",
        "agentd-agents.service",
        "agentd.slice",
    ])?;
    take_away(&lab.items, &lab.bed.root())?;
    lab.bed.run(&[
        "rm",
        "-r",
        "/etc/systemd/system/agentd.service.d",
        "/etc/credstore",
    ])?;
    purge(&lab.bed.root())?;
    lab.systemctl(&["daemon-reload"])?;
    lab.systemctl(&["reset-failed"])?;
    let after = traces(lab)?;
    ensure!(after.trim().is_empty(), "left: {after}");
    let units = lab.systemctl(&["list-units", "--all", "--plain", "--no-legend", "agentd*"])?;
    let units: Vec<&str> = units
        .lines()
        .filter(|unit| !unit.starts_with("agentd-bed"))
        .collect();
    ensure!(units.is_empty(), "systemd still knows {units:?}");
    Ok(())
}
