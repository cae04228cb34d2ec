//! Sandboxes that programs bring along: they work inside, or say in one line why not.

use crate::workloads::workload::Workload;

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "nested-bwrap",
        needs: &["bwrap"],
        run: r#"bwrap --ro-bind / / --unshare-all true 2> refused && echo works > refused || true"#,
        check: r#"[ "$(wc -l < refused)" = 1 ]; grep -Eq 'works|namespace|user' refused"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "nested-seccomp-landlock",
        needs: &["cc"],
        run: r#"
            cat > main.c <<'END'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    struct landlock_ruleset_attr rules = { .handled_access_fs = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG };
    int fd = syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);
    if (fd < 0 && errno != ENOSYS && errno != EOPNOTSUPP) return 1;
    if (fd >= 0 && syscall(SYS_landlock_restrict_self, fd, 0)) return 2;
    if (fd >= 0 && (open("made", O_CREAT | O_WRONLY, 0644) >= 0 || errno != EACCES)) return 3;
    struct sock_filter code[] = { { BPF_LD | BPF_W | BPF_ABS, 0, 0, 0 }, { BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_getpriority },
        { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | 77 }, { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW } };
    struct sock_fprog program = { 4, code };
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 4;
    if (syscall(SYS_getpriority, 0, 0) != -1 || errno != 77) return 5;
    puts("tighter"); return 0;
}
END
            cc -o main main.c; ./main
        "#,
        check: r#"[ "$(cat "$OUT")" = tighter ]; [ ! -e made ]"#,
        ..Workload::PLAIN
    },
];
