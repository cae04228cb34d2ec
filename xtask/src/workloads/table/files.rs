//! Shells, files, archives, text.

use crate::workloads::workload::Workload;

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "bash",
        needs: &["bash"],
        run: r#"
            declare -A colours=([grass]=green [sky]=blue)
            trap 'echo trapped >> trace' USR1; kill -USR1 $$
            diff <(printf '%s\n' b a | sort) <(printf 'a\nb\n')
            coproc UP { while read -r line; do echo "${line^^}"; done; }
            echo loud >&"${UP[1]}"; read -r answer <&"${UP[0]}"
            (exit 3) || status=$?
            false | true && pipe=${PIPESTATUS[*]} || pipe=${PIPESTATUS[*]}
            cat > result <<END
            ${colours[sky]} $answer $status $pipe
END
        "#,
        check: r#"read -r a b c d e < result; [ "$a $b $c $d $e" = "blue LOUD 3 1 0" ]; grep -q trapped trace"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "coreutils",
        run: r#"
            mkdir -p tree/{a,b}/{c,d}; seq 1000 > tree/numbers
            cp -a tree copy; mv copy/numbers copy/a/; ln copy/a/numbers copy/hard; ln -s a/numbers copy/soft
            install -m 750 -D tree/numbers deep/er/numbers; chmod -R u+rwX,go-w copy; touch -d '2020-02-02 UTC' tree/a
            split -n 4 tree/numbers part.; cat part.* | cmp - tree/numbers
            sort -R tree/numbers | sort -n | tee sorted | sha256sum | cut -d' ' -f1 > sum
            dd if=/dev/zero of=zeros bs=64K count=16 conv=fsync status=none; truncate -s 1M sparse; cmp zeros sparse
            head -c 100 /dev/urandom | base64 -w0 | wc -c > random; date -u -d @0 +%F > epoch; nproc > cpus; df . > df
            rm -r tree/b; rmdir tree/a/{c,d}; timeout 5 sleep 0; stat -c %a deep/er/numbers > mode
        "#,
        check: r#"
            seq 1000 | sha256sum | grep -q "^$(cat sum) "; [ "$(stat -c %h copy/hard)" = 2 ]; [ "$(readlink copy/soft)" = a/numbers ]
            [ "$(cat mode epoch random)" = "750
1970-01-01
136" ]; [ ! -e tree/b ]; [ "$(stat -c %Y tree/a)" != 0 ]; [ "$(stat -c %s sparse)" = 1048576 ]
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "find-xargs",
        needs: &["find", "xargs"],
        run: r#"
            mkdir -p d/{1..20}; for i in {1..20}; do echo "$i" > "d/$i/file $i.txt"; done
            find d -name '*.txt' -newer /etc/ld.so.cache -print0 | xargs -0 -n 3 -P 4 cat > all
            find d -type f -name '*1*' -exec cp -t . {} +; find d -empty -delete; find . -maxdepth 1 -name '*.txt' | wc -l > count
        "#,
        check: r#"[ "$(sort -n all | tr '\n' ' ')" = "$(seq -s ' ' 20) " ]; [ "$(cat count)" = 11 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "grep-sed-awk",
        needs: &["grep", "sed", "awk"],
        run: r#"
            for i in {1..50}; do echo "line $i of file"; done > text; cp text edited
            sed -i -E 's/line ([0-9]*7) /LINE <\1> /' edited; grep -c LINE edited > seven
            grep -rlE 'LINE <(7|47)>' . > found; awk '{sum += $2} END {print sum}' text > sum
        "#,
        check: r#"[ "$(cat seven sum)" = "5
1275" ]; grep -q edited found"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "tar",
        needs: &["tar", "gzip"],
        run: r#"
            mkdir -p tree/sub; seq 5000 > tree/numbers; ln -s numbers tree/link; ln tree/numbers tree/sub/hard; chmod 640 tree/numbers
            mkfifo tree/fifo; tar czf tree.tar.gz tree; mkdir out; tar xzpf tree.tar.gz -C out
            tar cf - tree | (cd /tmp && tar xf -); cmp /tmp/tree/numbers tree/numbers
        "#,
        check: r#"
            cmp tree/numbers out/tree/numbers; [ -p out/tree/fifo ]; [ "$(readlink out/tree/link)" = numbers ]
            [ out/tree/numbers -ef out/tree/sub/hard ]; [ "$(stat -c %a out/tree/numbers)" = 640 ]
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "compressors",
        needs: &["gzip", "bzip2", "xz", "zstd"],
        run: r#"
            seq 200000 > plain
            for tool in gzip bzip2 'xz -T2 -1' 'zstd -q -T2 --rm'; do
                cp plain "by-${tool%% *}"; $tool "by-${tool%% *}"
            done
            gzip -dc by-gzip.gz | cmp - plain; bzip2 -dc by-bzip2.bz2 | cmp - plain
        "#,
        check: r#"xz -dc by-xz.xz | cmp - plain; zstd -dqc by-zstd.zst | cmp - plain"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "rsync",
        needs: &["rsync"],
        run: r#"
            mkdir -p from/sub to/stale; seq 10000 > from/sub/numbers; ln -s sub/numbers from/link; echo old > to/sub
            rsync -a --delete from/ to/; echo more >> from/sub/numbers; rsync -ac --inplace --stats from/ to/
        "#,
        check: r#"diff -r from to; [ -L to/link ]; [ ! -e to/stale ]; grep -q 'files transferred: 1' "$OUT""#,
        ..Workload::PLAIN
    },
    Workload {
        name: "diff-patch",
        needs: &["diff", "patch"],
        run: r#"
            mkdir a b; seq 100 > a/f; sed 's/^50$/fifty/; 70d' a/f > b/f; diff -ru a b > change.patch || [ $? = 1 ]
            cp -r a c; patch -d c -p1 < change.patch; cmp b/f c/f; patch -R -d c -p1 < change.patch
        "#,
        check: r#"diff -r a c; grep -q '^+fifty' change.patch"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "perl",
        needs: &["perl"],
        run: r#"
            seq 10 > numbers
            perl -MFile::Temp=tempfile -MPOSIX=strftime -MDigest::SHA=sha256_hex -pi -e 's/(\d+)/$1*$1/e' numbers
            perl -e 'my $pid = fork // die; if (!$pid) { exec "sh", "-c", "exit 7" } waitpid $pid, 0; open my $f, ">", "status"; print $f $? >> 8'
        "#,
        check: r#"[ "$(tail -1 numbers)" = 100 ]; [ "$(cat status)" = 7 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "jq",
        needs: &["jq"],
        run: r#"echo '{"a":[{"n":1},{"n":41}]}' > in.json; jq '{sum: ([.a[].n] | add)}' in.json > out.json"#,
        check: r#"grep -q '"sum": 42' out.json"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "openssl",
        needs: &["openssl"],
        run: r#"
            openssl genpkey -algorithm ed25519 -out key.pem
            openssl req -x509 -key key.pem -subj /CN=localhost -days 2 -out cert.pem; openssl verify -CAfile cert.pem cert.pem
            echo secret > plain; openssl enc -aes-256-cbc -pbkdf2 -pass pass:x -in plain -out sealed
            openssl s_server -accept 8443 -key key.pem -cert cert.pem -www -quiet & server=$!
            until openssl s_client -connect 127.0.0.1:8443 -CAfile cert.pem -verify_return_error -brief </dev/null 2> handshake; do :; done
            kill $server
        "#,
        check: r#"
            grep -q 'Protocol version: TLSv1.3' handshake; grep -q 'Verification: OK' handshake
            [ "$(openssl enc -d -aes-256-cbc -pbkdf2 -pass pass:x -in sealed)" = secret ]
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "ssh-keygen",
        needs: &["ssh-keygen", "ssh-agent"],
        run: r#"
            ssh-keygen -q -t ed25519 -N '' -C agent -f key; echo text > file
            eval "$(ssh-agent)"; ssh-add -q key; ssh-keygen -q -Y sign -n file -f key.pub file; kill "$SSH_AGENT_PID"
            printf 'agent %s\n' "$(cat key.pub)" > signers; ssh-keygen -Y verify -f signers -I agent -n file -s file.sig < file
        "#,
        // Not verified here once more: the host's ssh-keygen does nothing for a user without a passwd entry.
        check: r#"grep -q '^Good "file" signature for agent' "$OUT"; grep -q 'BEGIN SSH SIGNATURE' file.sig; [ "$(stat -c %a key)" = 600 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "sqlite",
        needs: &["sqlite3"],
        run: r#"
            sqlite3 db 'PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); PRAGMA mmap_size=1048576;'
            for writer in 1 2 3; do
                (for n in {1..20}; do echo "PRAGMA busy_timeout=20000; INSERT INTO t VALUES($n);"; done | sqlite3 db >/dev/null) &
            done; wait
            sqlite3 db 'SELECT sum(n) FROM t'; sqlite3 db .dump > dump.sql; sqlite3 copy < dump.sql; sqlite3 db 'VACUUM'
        "#,
        check: r#"[ "$(sqlite3 copy 'SELECT count(*), sum(n) FROM t')" = '60|630' ]; [ "$(sqlite3 db 'PRAGMA integrity_check')" = ok ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "locks",
        needs: &["flock", "python3"],
        run: r#"
            echo 0 > counter
            for i in {1..20}; do (flock 9; echo $(($(cat counter) + 1)) > counter) 9> lock & done; wait
            python3 -c '
import fcntl, os
f = open("records", "w+"); fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
if os.fork() == 0:
    try: fcntl.lockf(open("records", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5); os._exit(1)
    except OSError: os._exit(0)
assert os.wait()[1] == 0; print("record locks hold")'
        "#,
        check: r#"[ "$(cat counter)" = 20 ]; grep -q 'record locks hold' "$OUT""#,
        ..Workload::PLAIN
    },
];
