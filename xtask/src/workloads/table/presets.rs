//! What the other built-in policies are for, and what each of them must keep from happening.

use crate::workloads::workload::{Folder, Workload};

/// A repository with one commit, for those that only read.
const REPOSITORY: &str = r#"
    git init -q -b main .; echo 'one line' > file; printf '#!/bin/sh\necho ran\n' > tool; chmod +x tool; git add .
    git -c user.name=you -c user.email=you@localhost commit -qm 'the first'; find . | sort > ../before
"#;

/// Nothing came, went or changed.
const UNCHANGED: &str = r#"
    find . | sort | cmp - ../before; [ "$(cat file)" = 'one line' ]; git -c safe.directory='*' diff --quiet HEAD
"#;

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "base-computes",
        policy: "base",
        folder: Folder::None,
        run: "seq 1000 | sort -R | sort -n | tail -1; ls -A ~",
        check: r#"[ "$(cat "$OUT")" = 1000 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "review-reads",
        policy: "review",
        needs: &["git"],
        prepare: REPOSITORY,
        run: r#"
            git log --format=%s; git diff; git grep -n line; git blame file
            cp tool ~/notes; cat ~/notes > /dev/null
            ! touch made; ! sh -c 'echo more >> file'; ! git commit --allow-empty -qm no; ! ./tool; ! rm file
        "#,
        check: UNCHANGED,
        ..Workload::PLAIN
    },
    Workload {
        name: "review-runs-node",
        policy: "review",
        needs: &["node"],
        prepare: REPOSITORY,
        run: r#"node -e 'let n = 0; for (let i = 0; i < 1e7; i++) n = (n + i) % 1000003;
            console.log(n, require("fs").readFileSync("file", "utf8").trim())'"#,
        check: r#"grep -q 'one line' "$OUT""#,
        ..Workload::PLAIN
    },
    Workload {
        name: "build-compiles",
        policy: "build",
        needs: &["make", "cc", "git"],
        prepare: REPOSITORY,
        run: r#"
            printf 'int main(void) { return 0; }\n' > main.c; printf 'test: main\n\t./main\n\t./tool\nmain: main.c\n' > Makefile
            make -j2 test
            ! git ls-remote https://github.com/git/git; ! (exec 3<>/dev/tcp/127.0.0.1/3128); ! (exec 3<>/dev/tcp/127.0.0.1/8080)
        "#,
        check: r#"[ -x main ]; grep -q '^ran$' "$OUT""#,
        ..Workload::PLAIN
    },
    Workload {
        name: "build-cargo",
        policy: "build",
        needs: &["cargo", "cc"],
        run: r#"
            mkdir src; printf '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n' > Cargo.toml
            echo 'fn main() { println!("{}", env!("MADE")); }' > src/main.rs
            echo 'fn main() { println!("cargo::rustc-env=MADE=by a build script"); }' > build.rs
            cargo run --offline
        "#,
        check: r#"[ "$(cat "$OUT")" = 'by a build script' ]; [ -x target/debug/app ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "python-task",
        policy: "python-task",
        needs: &["python3"],
        prepare: r#"seq 1000 > data"#,
        run: r#"
            cat > task.py <<'END'
import csv, json, os, socket, statistics, subprocess, multiprocessing
numbers = [int(line) for line in open("data")]
with multiprocessing.Pool(2) as pool: total = sum(pool.map(abs, numbers))
json.dump({"mean": statistics.mean(numbers), "total": total}, open("result.json", "w"))
open("dropped", "w").write(chr(35) + "!/bin/sh\n"); os.chmod("dropped", 0o755)
for refused in [lambda: subprocess.run(["./dropped"]), lambda: socket.create_connection(("192.0.2.1", 80), 5)]:
    try: refused()
    except OSError as error: print("refused", error.errno)
    else: raise SystemExit("not refused")
END
            python3 task.py
        "#,
        check: r#"[ "$(cat result.json)" = '{"mean": 500.5, "total": 500500}' ]; [ "$(grep -c refused "$OUT")" = 2 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "strict-bash",
        policy: "strict",
        prepare: REPOSITORY,
        run: r#"
            echo more >> file; tail -1 file; mkdir -p new/folder; seq 100 | sort -R | sort -n | tail -1 > new/folder/most
            cat new/folder/most; rm tool; mv file moved; printf '#!/bin/sh\n' > dropped; chmod +x dropped; ! ./dropped
        "#,
        check: r#"find . | sort | cmp - ../before; [ "$(cat file)" = 'one line' ]; [ "$(tr '\n' ' ' < "$OUT")" = 'more 100 ' ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "strict-python",
        policy: "strict",
        needs: &["python3"],
        prepare: REPOSITORY,
        run: r#"
            /usr/bin/python3 -c '
import json, os, sqlite3, subprocess, threading
threads = [threading.Thread(target=print, args=("thread",)) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
db = sqlite3.connect(":memory:"); print(db.execute("select 40 + 2").fetchone()[0])
print(subprocess.run(["cat", "file"], capture_output=True, text=True).stdout.strip())
try: os.memfd_create("m")
except OSError as error: print("no memory files", error.errno)'
        "#,
        check: r#"grep -q '^42$' "$OUT"; grep -q 'one line' "$OUT"; grep -q 'no memory files' "$OUT""#,
        ..Workload::PLAIN
    },
    Workload {
        name: "strict-git",
        policy: "strict",
        needs: &["git"],
        prepare: REPOSITORY,
        run: r#"
            git log --format=%s; git status --short; git show HEAD:file; git grep -c line
            git -c user.name=a -c user.email=a@localhost commit -q --allow-empty -m 'in the copy alone'; git log --oneline | wc -l
        "#,
        check: UNCHANGED,
        ..Workload::PLAIN
    },
];
