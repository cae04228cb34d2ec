//! git and package registries from inside, with tokens that stay outside: real clients, a local host that wants a
//! token for everything, and TLS that agentd ends for this host alone.

mod forge;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use agentd_testkit::skip;
use base64::Engine as _;

use crate::harness::{ALICE, Daemon, Mode, dir_of, is_root, modes, output, text};
use crate::tighten::{Obedient, is_told_with};
use forge::{Forge, HOST};

const TOKEN: &str = "forge-token-THE-REAL-ONE-0123456789";

fn basic() -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("bot:{TOKEN}"));
    format!("Basic {pair}")
}

/// A host, a daemon that has its token, and an agent's policy for it.
struct Scene {
    forge: Forge,
    daemon: Daemon,
    work: tempfile::TempDir,
    /// Of the host: repositories and what registries serve.
    house: tempfile::TempDir,
    _keys: tempfile::TempDir,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        Self::at(HOST, mode)
    }

    fn at(host: &str, mode: Mode) -> Self {
        let house = tempfile::tempdir().expect("a directory");
        let repositories = house.path().join("repositories");
        for name in ["team/app.git", "other/app.git"] {
            run(Command::new("git")
                .args(["init", "-q", "--bare"])
                .arg(repositories.join(name)));
        }
        let forge = Forge::start(host, &repositories, &basic());
        let owner = if is_root() && mode == Mode::User {
            ALICE
        } else {
            rustix::process::geteuid().as_raw()
        };
        let keys = dir_of(owner);
        for (name, content) in [("token", TOKEN), ("ca.pem", forge.authority.as_str())] {
            let file = keys.path().join(name);
            std::fs::write(&file, content).expect("write");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
            if is_root() {
                std::os::unix::fs::chown(&file, Some(owner), None).expect("chown");
            }
        }
        let mut config = format!(
            "[net]\nextra_ca = [\"{}\"]\n",
            keys.path().join("ca.pem").display()
        );
        for (paths, methods, kind) in [
            ("\"/git/team\"", "\"GET\", \"POST\"", "{ basic = \"bot\" }"),
            ("\"/npm\"", "\"GET\"", "\"bearer\""),
            ("\"/simple\", \"/wheels\"", "\"GET\"", "{ basic = \"bot\" }"),
            ("\"/cargo\"", "\"GET\"", "{ header = \"authorization\" }"),
        ] {
            config.push_str(&format!(
                "[[net.credential]]\nname = \"forge\"\nhost = \"{host}\"\nport = {}\npaths = [{paths}]\n\
                 methods = [{methods}]\nkind = {kind}\nsecret = {{ file = \"{}\" }}\n",
                forge.port,
                keys.path().join("token").display()
            ));
        }
        let daemon = Daemon::with_config(mode, &config);
        let work = daemon.workspace();
        let policy = format!(
            "extends = \"coding\"\n[net]\nallow = [{{ host = \"{host}:{}\", private = true }}]\n\
             credentials = [\"forge\"]\n",
            forge.port
        );
        std::fs::write(work.path().join("policy.toml"), policy).expect("write the policy");
        Self {
            forge,
            daemon,
            work,
            house,
            _keys: keys,
        }
    }

    /// A shell script as an agent under the policy.
    fn agent(&self, name: &str, script: &str) -> (i32, String, String) {
        let policy = self.work.path().join("policy.toml");
        let options = ["--name", name, "--policy", policy.to_str().expect("UTF-8")];
        text(
            &self
                .daemon
                .run_with(self.work.path(), &options, &["sh", "-euc", script]),
        )
    }

    fn seen(&self) -> Vec<forge::Seen> {
        self.forge.shelf.seen.lock().expect("no panic").clone()
    }
}

fn run(command: &mut Command) -> String {
    let ran = command
        .env("HOME", "/nonexistent")
        .output()
        .expect("a program");
    assert!(
        ran.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8(ran.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}

fn exists(program: &str) -> bool {
    Path::new("/usr/bin").join(program).exists()
}

fn has_git_server() -> bool {
    const PROGRAM: &str = "/usr/lib/git-core/git-http-backend";
    let has = Path::new(PROGRAM).exists();
    if !has {
        skip("git-http-backend", &format!("there is no {PROGRAM}"));
    }
    has
}

const COMMIT: &str = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a \
                      GIT_COMMITTER_EMAIL=a@example.org; git init -q $HOME/app; cd $HOME/app; echo x > file; \
                      git add file; git commit -qm first; ";

#[test]
fn git_pushes_with_a_token_that_its_agent_never_sees() {
    if !has_git_server() {
        return;
    }
    for mode in modes() {
        let scene = Scene::new(mode);
        let push = format!(
            "{COMMIT} git -c http.extraHeader='Authorization: Bearer agents-own' -c http.extraHeader='Cookie: a=agents-own' \
             push -q {} HEAD:refs/heads/main; git rev-parse HEAD",
            scene.forge.url("/git/team/app.git")
        );
        let (code, out, err) = scene.agent("pusher", &push);
        assert_eq!(code, 0, "{mode:?}: {out}{err}\n{:#?}", scene.seen());
        let repository = scene.house.path().join("repositories/team/app.git");
        let pushed = run(Command::new("git")
            .arg("--git-dir")
            .arg(&repository)
            .args(["rev-parse", "refs/heads/main"]));
        assert_eq!(pushed, out.trim(), "{mode:?}");
        let seen = scene.seen();
        assert!(
            seen.iter().any(|s| s
                .line
                .starts_with("POST /git/team/app.git/git-receive-pack")),
            "{seen:#?}"
        );
        for request in &seen {
            assert_eq!(
                (request.authorization.as_str(), request.cookie.as_str()),
                (basic().as_str(), ""),
                "{request:?}"
            );
        }

        // Other folders of the same host, and ways around the rule, are refused before the host hears of them.
        for (name, path, why) in [
            (
                "prowler",
                "/git/other/app.git",
                "covered by no path and method",
            ),
            (
                "climber",
                "/git/team/%2e%2e/other/app.git",
                "the path has . or .. in it",
            ),
            (
                "twister",
                "/git/team/%252e%252e/other/app.git",
                "the path is escaped twice",
            ),
        ] {
            let before = scene.seen().len();
            let (code, _, err) = scene.agent(
                name,
                &format!(
                    "git -c http.version=HTTP/1.1 ls-remote {}",
                    scene.forge.url(path)
                ),
            );
            assert!(code != 0 && err.contains("40"), "{mode:?} {path}: {err}");
            assert_eq!(scene.seen().len(), before, "{path}");
            let record = text(&output(
                &mut scene.daemon.agentctl(["--json", "inspect", name]),
            ));
            assert!(record.1.contains(why), "{record:?}");
        }

        // From inside: environment, files, configuration, processes, and what the tools say when asked loudly.
        let hunt = format!(
            "{COMMIT} (env; git config --list; cat /proc/*/environ /proc/*/cmdline; cat ~/.git-credentials ~/.netrc; \
             GIT_CURL_VERBOSE=1 GIT_TRACE_CURL=1 GIT_TRACE_REDACT=0 git ls-remote {}; cat /etc/ssl/certs/*) 2>&1 || true",
            scene.forge.url("/git/team/app.git")
        );
        let (_, out, err) = scene.agent("hunter", &hunt);
        let secret = basic();
        let secret = secret.trim_start_matches("Basic ");
        for text in [&out, &err] {
            assert!(
                !text.contains(TOKEN) && !text.contains(secret),
                "{mode:?}: an agent found the token"
            );
        }
        assert!(out.contains("refs/heads/main"), "{out}");
        assert!(!scene.daemon.log().contains(TOKEN));
    }
}

#[test]
fn without_the_policy_s_word_a_tunnel_stays_blind() {
    for mode in modes() {
        let scene = Scene::new(mode);
        let policy = format!(
            "extends = \"coding\"\n[net]\nallow = [{{ host = \"{HOST}:{}\", private = true }}]\n",
            scene.forge.port
        );
        std::fs::write(scene.work.path().join("policy.toml"), policy).expect("write the policy");
        let url = scene.forge.url("/git/team/app.git");
        // The host's own certificate is what the agent sees, and its own authority is not trusted inside.
        let (code, _, err) = scene.agent("stranger", &format!("git ls-remote {url}"));
        assert!(code != 0 && err.contains("certificate"), "{mode:?}: {err}");
        let (code, _, err) = scene.agent(
            "stranger",
            &format!("GIT_TERMINAL_PROMPT=0 git -c http.sslVerify=false ls-remote {url}"),
        );
        assert!(code != 0, "{mode:?}: {err}");
        assert!(
            scene.seen().iter().all(|s| s.authorization.is_empty()),
            "{:#?}",
            scene.seen()
        );

        // A credential that this user does not have refuses the launch, in one line.
        std::fs::write(
            scene.work.path().join("policy.toml"),
            "extends = \"coding\"\n[net]\ncredentials = [\"vault\"]\n",
        )
        .expect("write");
        let (code, _, err) = scene.agent("greedy", "true");
        assert!(
            code == 125 && err.contains("vault"),
            "{mode:?}: {code} {err}"
        );
    }
}

#[test]
fn a_credential_that_is_taken_while_the_agent_runs_is_refused_with_its_line_until_it_is_back() {
    if !has_git_server() {
        return;
    }
    for mode in modes() {
        let scene = Scene::new(mode);
        let owner = scene.daemon.owner();
        let policy = std::fs::read_to_string(scene.work.path().join("policy.toml"));
        let policy = policy.expect("read the policy");
        let work = scene.work.path();
        let mut agent = Obedient::start(&scene.daemon, owner, "coder", work, &policy);
        let list = format!("sh git ls-remote {}", scene.forge.url("/git/team/app.git"));
        agent.is_done(&list);
        let ctl = |args: &[&str]| {
            let (code, out, err) = text(&output(&mut scene.daemon.agentctl(args)));
            assert_eq!(code, 0, "{mode:?} {args:?}: {out}{err}");
        };
        ctl(&["tighten", "coder", "--set", "net.credentials=another"]);
        let before = scene.seen().len();
        let why = agent.is_refused(&list);
        assert!(why.contains("403"), "{mode:?}: {why}");
        assert_eq!(scene.seen().len(), before, "the host hears nothing of it");
        is_told_with(&scene.daemon, owner, "egress", "--set net.credentials");
        ctl(&["restore", "policy", "coder"]);
        agent.is_done(&list);
        ctl(&["kill", "coder"]);
    }
}

#[test]
fn npm_installs_from_a_registry_that_wants_a_token() {
    if !exists("npm") {
        return skip("npm", "there is no /usr/bin/npm");
    }
    let Some(host) = forge::own_name() else {
        return skip(
            "hostname",
            "this machine's name does not lead to loopback, and npm can't verify addresses through a proxy",
        );
    };
    for mode in modes() {
        let scene = Scene::at(&host, mode);
        let package = scene.house.path().join("package");
        std::fs::create_dir(&package).expect("a directory");
        std::fs::write(
            package.join("package.json"),
            r#"{"name":"leftword","version":"1.0.0","main":"main.js"}"#,
        )
        .expect("write");
        std::fs::write(package.join("main.js"), "module.exports = 'from npm'").expect("write");
        run(Command::new("tar")
            .arg("-czf")
            .arg(scene.house.path().join("p.tgz"))
            .arg("-C")
            .arg(scene.house.path())
            .arg("package"));
        let tarball = scene.forge.url("/npm/leftword/-/leftword-1.0.0.tgz");
        let about = serde_json::json!({"name": "leftword", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {
            "name": "leftword", "version": "1.0.0", "main": "main.js", "dist": {"tarball": tarball}}}});
        let bearer = format!("Bearer {TOKEN}");
        scene.forge.put("/npm/leftword", &bearer, about.to_string());
        scene.forge.put(
            "/npm/leftword/-/leftword-1.0.0.tgz",
            &bearer,
            std::fs::read(scene.house.path().join("p.tgz")).expect("read"),
        );
        let install = format!(
            "mkdir -p $HOME/app; cd $HOME/app; npm install --no-audit --no-fund --no-update-notifier --registry {} leftword >&2; \
             node -p 'require(\"leftword\")'; ! grep -r {TOKEN} $HOME",
            scene.forge.url("/npm/")
        );
        let (code, out, err) = scene.agent("npm", &install);
        assert_eq!(
            (code, out.as_str()),
            (0, "from npm\n"),
            "{mode:?}: {err}\n{:#?}",
            scene.seen()
        );
    }
}

#[test]
fn pip_installs_from_an_index_that_wants_a_token() {
    if !exists("python3") || !exists("pip3") {
        return skip("pip", "there is no /usr/bin/pip3");
    }
    const WHEEL: &str = "import sys, zipfile\nw = zipfile.ZipFile(sys.argv[1], 'w')\n\
        d = 'leftword-1.0.dist-info/'\nw.writestr('leftword.py', 'word = \"from pip\"\\n')\n\
        w.writestr(d + 'METADATA', 'Metadata-Version: 2.1\\nName: leftword\\nVersion: 1.0\\n')\n\
        w.writestr(d + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
        w.writestr(d + 'RECORD', 'leftword.py,,\\n' + ''.join(d + f + ',,\\n' for f in ('METADATA', 'WHEEL', 'RECORD')))\nw.close()\n";
    for mode in modes() {
        let scene = Scene::new(mode);
        let wheel = scene.house.path().join("leftword-1.0-py3-none-any.whl");
        run(Command::new("/usr/bin/python3")
            .args(["-c", WHEEL])
            .arg(&wheel));
        let page =
            "<!DOCTYPE html><a href=\"../../wheels/leftword-1.0-py3-none-any.whl\">leftword</a>";
        scene.forge.put("/simple/leftword/", &basic(), page);
        scene.forge.put(
            "/wheels/leftword-1.0-py3-none-any.whl",
            &basic(),
            std::fs::read(&wheel).expect("read"),
        );
        let install = format!(
            "/usr/bin/python3 -m pip install -q --disable-pip-version-check --no-cache-dir --target $HOME/lib --index-url {} leftword >&2; \
             PYTHONPATH=$HOME/lib /usr/bin/python3 -c 'import leftword; print(leftword.word)'",
            scene.forge.url("/simple/")
        );
        let (code, out, err) = scene.agent("pip", &install);
        assert_eq!(
            (code, out.as_str()),
            (0, "from pip\n"),
            "{mode:?}: {err}\n{:#?}",
            scene.seen()
        );
    }
}

#[test]
fn cargo_fetches_from_a_registry_that_wants_a_token() {
    let home = std::env::var("HOME").unwrap_or_default();
    if !Path::new(&home).join(".cargo/bin/cargo").exists() {
        return skip("cargo", "there is no ~/.cargo/bin/cargo");
    }
    // The toolchain lies in the home of whoever runs the tests, so only that user's daemon can show it.
    let mode = if is_root() { Mode::Root } else { Mode::User };
    let scene = Scene::new(mode);
    let source = scene.house.path().join("leftword-1.0.0");
    std::fs::create_dir_all(source.join("src")).expect("a directory");
    std::fs::write(
        source.join("Cargo.toml"),
        "[package]\nname = \"leftword\"\nversion = \"1.0.0\"\nedition = \"2021\"\n",
    )
    .expect("write");
    std::fs::write(
        source.join("src/lib.rs"),
        "pub const WORD: &str = \"from cargo\";\n",
    )
    .expect("write");
    let file = scene.house.path().join("leftword.crate");
    run(Command::new("tar")
        .arg("-czf")
        .arg(&file)
        .arg("-C")
        .arg(scene.house.path())
        .arg("leftword-1.0.0"));
    let sum = run(Command::new("sha256sum").arg(&file));
    let line = serde_json::json!({"name": "leftword", "vers": "1.0.0", "deps": [], "features": {}, "yanked": false,
        "cksum": sum.split(' ').next().expect("a sum")});
    let config =
        serde_json::json!({"dl": format!("{}/{{crate}}.crate", scene.forge.url("/cargo/dl"))});
    scene
        .forge
        .put("/cargo/index/config.json", TOKEN, config.to_string());
    scene
        .forge
        .put("/cargo/index/le/ft/leftword", TOKEN, format!("{line}\n"));
    scene.forge.put(
        "/cargo/dl/leftword.crate",
        TOKEN,
        std::fs::read(&file).expect("read"),
    );
    let fetch = format!(
        "export PATH={home}/.cargo/bin:$PATH CARGO_HOME=$TMPDIR/cargo RUSTUP_HOME={home}/.rustup; mkdir -p $TMPDIR/app/src $TMPDIR/app/.cargo; cd $TMPDIR/app; \
         printf '[registries.forge]\\nindex = \"sparse+{}\"\\n' > .cargo/config.toml; \
         printf '[package]\\nname = \"app\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\nleftword = {{ version = \"1\", registry = \"forge\" }}\\n' > Cargo.toml; \
         touch src/lib.rs; {home}/.cargo/bin/cargo fetch >&2; cat $CARGO_HOME/registry/src/*/leftword-1.0.0/src/lib.rs",
        scene.forge.url("/cargo/index/")
    );
    let policy = scene.work.path().join("policy.toml");
    let mut command = scene
        .daemon
        .agentctl(["run", "--no-tty", "--name", "cargo", "--policy"]);
    command
        .env("HOME", &home)
        .arg(&policy)
        .arg("--workspace")
        .arg(scene.work.path())
        .args(["--", "sh", "-euc", &fetch]);
    let (code, out, err) = text(&output(&mut command));
    assert_eq!(
        (code, out.as_str()),
        (0, "pub const WORD: &str = \"from cargo\";\n"),
        "{err}\n{:#?}",
        scene.seen()
    );
    assert!(
        scene.seen().iter().all(|s| s.authorization == TOKEN),
        "{:#?}",
        scene.seen()
    );
}
