//! Programs that want a terminal.

use crate::workloads::workload::{Streams, Workload};

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "job-control",
        needs: &["bash"],
        streams: Streams::Terminal,
        run: r#"
            tty > tty; stty size > size
            bash --norc -i <<'END'
sleep 1000 &
kill -STOP %1
wait -n 2>/dev/null; jobs > stopped
bg %1 > /dev/null; jobs > running
kill %1; wait 2>/dev/null; jobs > over
END
            set -m; cat & wait %1 || true; jobs -l > reading; kill %1
        "#,
        check: r#"grep -q '^/dev/pts/' tty; grep -q Stopped stopped; grep -q Running running; grep -q 'tty input' reading"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "tmux",
        needs: &["tmux"],
        run: r#"
            export TERM=xterm-256color; tmux -f /dev/null new-session -d -x 80 -y 24 -s work
            tmux send-keys -t work 'stty size > size; tmux wait-for -S done' Enter; tmux wait-for done
            tmux split-window -t work 'echo split > split; tmux wait-for -S split'; tmux wait-for split
            tmux capture-pane -p -t work.0 > screen; tmux kill-server
        "#,
        check: r#"grep -q ' 80$' size; [ "$(cat split)" = split ]; grep -q 'stty size' screen"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "vim",
        needs: &["vim"],
        run: r#"
            seq 10 > text
            vim -Nu NONE -es -c '%s/5/five/' -c 'g/^1$/d' -c 'call append("$", system("echo from a shell"))' -c wq text
        "#,
        check: r#"grep -q '^five$' text; ! grep -q '^1$' text; grep -q 'from a shell' text"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "nested-pty",
        needs: &["script", "python3"],
        run: r#"
            script -qec 'test -t 0 && tty && stty rows 40 && stty size' /dev/null < /dev/null
            python3 -c 'import os, pty; pty.spawn(["sh", "-c", "test -t 1 && echo a terminal"])' < /dev/null
        "#,
        check: r#"grep -q '^/dev/pts/' "$OUT"; grep -q '^40 ' "$OUT"; grep -q 'a terminal' "$OUT""#,
        ..Workload::PLAIN
    },
];
