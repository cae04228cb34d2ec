//! Servers that tests of applications start for themselves.

use crate::workloads::workload::Workload;

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "postgres",
        needs: &["initdb"],
        run: r#"
            PATH=$(echo /usr/lib/postgresql/*/bin | tr ' ' '\n' | tail -1):$PATH
            initdb -D data -U agent --no-sync > initdb.log
            # System V memory for the main segment as well as POSIX memory for the workers.
            pg_ctl -D data -o "-c shared_memory_type=sysv -c dynamic_shared_memory_type=posix -c listen_addresses=127.0.0.1 -k $PWD" \
                -l server.log -w start
            psql -h "$PWD" -U agent postgres -qc 'CREATE TABLE t AS SELECT generate_series(1, 1000) AS n'
            psql -h 127.0.0.1 -U agent postgres -Atc 'SELECT sum(n) FROM t'
            pg_ctl -D data -m fast -w stop
        "#,
        check: r#"grep -q '^500500$' "$OUT"; grep -q 'database system is shut down' server.log"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "redis",
        needs: &["redis-server", "redis-cli"],
        run: r#"
            redis-server --unixsocket "$PWD/redis.sock" --port 0 --save '' --appendonly yes --daemonize yes --logfile "$PWD/log"
            until redis-cli -s redis.sock PING 2>/dev/null | grep -q PONG; do :; done
            redis-cli -s redis.sock SET answer 42; redis-cli -s redis.sock BGREWRITEAOF
            redis-cli -s redis.sock EVAL "return redis.call('GET', 'answer') + 1" 0 > result; redis-cli -s redis.sock SHUTDOWN
        "#,
        check: r#"[ "$(cat result)" = 43 ]; ls appendonlydir/*.aof; grep -q 'ready to exit' log"#,
        ..Workload::PLAIN
    },
];
