//! What goes out through the proxy, and what stays on the sandbox's own loopback.

use crate::workloads::workload::{Network, Workload};

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "curl-proxy",
        needs: &["curl"],
        network: Network::StandIn,
        prepare: r#"head -c 3000000 /dev/urandom > "$HOST/blob""#,
        run: r#"
            curl -fsS -o blob "$URL/blob"; curl -fsS -r 100-199 -o range "$URL/blob"
            curl -fsS -p -o tunnel "$URL/blob"; curl -sS -o /dev/null -w '%{http_code}\n' http://203.0.113.1/ || true
        "#,
        check: r#"cmp blob "$HOST/blob"; cmp tunnel "$HOST/blob"; [ "$(cat "$OUT")" = 403 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "loopback-server",
        needs: &["python3", "curl"],
        run: r#"
            mkdir site; echo content > site/page
            python3 -u -m http.server -d site --bind 127.0.0.1 8123 > log 2>&1 & server=$!
            curl -fsS --retry 50 --retry-connrefused --retry-delay 0 --retry-max-time 60 -o page http://127.0.0.1:8123/page
            kill $server
        "#,
        check: r#"[ "$(cat page)" = content ]; grep -q 'GET /page' log"#,
        ..Workload::PLAIN
    },
];
