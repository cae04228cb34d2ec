//! Builds the static launcher: this crate and `agentd_kernel::sys` again, without `std`, and `program/main.rs` on top.
//!
//! It calls the compiler directly. Cargo cannot build one crate both for `std` and without within one workspace build,
//! and calling cargo from here would wait for the build directory's lock. The program is the same in every profile.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles one crate; `rustc` is run as cargo would, without its wrapper and lints, which the library build has.
fn compile(out: &Path, name: &str, kind: &str, source: &Path, arguments: &[String]) {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let target = env::var("TARGET").unwrap_or_default();
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let workspace = manifest.parent().unwrap_or(&manifest);
    let status = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "--crate-name",
            name,
            "--crate-type",
            kind,
            "--target",
            &target,
        ])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
            "-C",
            "codegen-units=1",
            "-C",
            "debuginfo=0",
        ])
        .args([
            "-C",
            "embed-bitcode=yes",
            "-C",
            "overflow-checks=no",
            "--cap-lints",
            "allow",
        ])
        .arg(format!(
            "--remap-path-prefix={}=agentd",
            workspace.display()
        ))
        .args(arguments)
        .arg("-L")
        .arg(out)
        .arg("--out-dir")
        .arg(out)
        .arg(source)
        .env_remove("RUSTFLAGS")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "building the static launcher: rustc for {} ended with {status}",
            source.display()
        ),
        Err(error) => panic!("building the static launcher: running rustc: {error}"),
    }
}

fn main() {
    let launch = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let kernel = launch.join("../kernel/src");
    for watched in [
        kernel.join("lib.rs"),
        kernel.join("sys"),
        launch.join("src"),
        launch.join("program"),
        launch.join("build.rs"),
    ] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    println!("cargo::rerun-if-env-changed=RUSTC");

    let external = |name: &str| {
        [
            String::from("--extern"),
            format!("{name}={}", out.join(format!("lib{name}.rlib")).display()),
        ]
    };
    compile(&out, "agentd_kernel", "rlib", &kernel.join("lib.rs"), &[]);
    compile(
        &out,
        "agentd_launch",
        "rlib",
        &launch.join("src/lib.rs"),
        &external("agentd_kernel"),
    );
    let mut link: Vec<String> = [external("agentd_kernel"), external("agentd_launch")].concat();
    let linker = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,-z,norelro",
    ];
    link.extend(
        [
            "-C",
            "relocation-model=static",
            "-C",
            "lto=fat",
            "-C",
            "strip=symbols",
            "-o",
        ]
        .map(String::from),
    );
    link.push(out.join("agentd-launch").display().to_string());
    link.extend(
        linker
            .iter()
            .map(|argument| format!("-Clink-arg={argument}")),
    );
    compile(
        &out,
        "agentd_launch_program",
        "bin",
        &launch.join("program/main.rs"),
        &link,
    );
}
