//! What programs ask of the kernel: sockets, shared memory, events, threads, processes.

use crate::workloads::workload::Workload;

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "unix-sockets",
        needs: &["python3"],
        run: r#"
            mkfifo pipe; (echo through a fifo > pipe) & cat pipe > fifo
            python3 - <<'END'
import os, socket
for address in ["socket", "\0abstract"]:
    server = socket.socket(socket.AF_UNIX); server.bind(address); server.listen()
    client = socket.socket(socket.AF_UNIX); client.connect(address); conn, _ = server.accept()
    read, write = os.pipe(); socket.send_fds(client, [b"x"], [write]); _, fds, _, _ = socket.recv_fds(conn, 1, 1)
    os.write(fds[0], b"passed\n"); os.close(fds[0]); os.close(write); print(os.read(read, 100).decode().strip())
    pid, uid, gid = __import__("struct").unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)); assert (pid, uid) == (os.getpid(), os.getuid())
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); a.send(b"one"); a.send(b"two"); assert (b.recv(9), b.recv(9)) == (b"one", b"two")
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.send(b"gram"); print(b.recv(9).decode())
END
        "#,
        check: r#"[ "$(tr '\n' ' ' < "$OUT")" = 'passed passed gram ' ]; grep -q 'through a fifo' fifo; [ -S socket ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "posix-shm",
        needs: &["cc"],
        run: r#"
            cat > main.c <<'END'
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    int fd = shm_open("/workload", O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0 || ftruncate(fd, 4096)) return 1;
    int *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    sem_t *sem = sem_open("/workload", O_CREAT | O_EXCL, 0600, 0);
    if (shared == MAP_FAILED || sem == SEM_FAILED) return 2;
    if (fork() == 0) { *shared = 42; sem_post(sem); _exit(0); }
    sem_wait(sem); wait(0); printf("shm %d\n", *shared);
    sem_unlink("/workload"); return shm_unlink("/workload");
}
END
            cc -o main main.c -lrt -pthread; ./main
        "#,
        check: r#"[ "$(tr '\n' ' ' < "$OUT")" = 'shm 42 ' ]; [ ! -e /dev/shm/workload ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "posix-mqueue",
        needs: &["cc"],
        run: r#"
            cat > main.c <<'END'
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    struct mq_attr attr = { .mq_maxmsg = 4, .mq_msgsize = 16 }; char text[16];
    mqd_t queue = mq_open("/workload", O_CREAT | O_EXCL | O_RDWR, 0600, &attr);
    if (queue == (mqd_t)-1) { perror("mq_open"); return 1; }
    if (fork() == 0) _exit(mq_send(queue, "queued", 7, 1) != 0);
    if (mq_receive(queue, text, 16, 0) != 7) return 2;
    wait(0); puts(text); return mq_unlink("/workload");
}
END
            cc -o main main.c -lrt; ./main
        "#,
        check: r#"[ "$(cat "$OUT")" = queued ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "sysv-ipc",
        needs: &["ipcmk", "ipcs", "ipcrm"],
        run: r#"
            ipcmk -M 65536; ipcmk -S 2; ipcmk -Q; ipcs > made
            ipcrm --all; ipcs > left
        "#,
        check: r#"[ "$(grep -c '^0x' made)" = 3 ]; ! grep -q '^0x' left; ipcs -m | { ! grep -q 65536; }"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "inotify",
        needs: &["inotifywait"],
        run: r#"
            mkdir watched
            inotifywait -qm -e create,close_write,moved_to --format '%e %f' --timefmt '' watched > events & watcher=$!
            until [ -s events ]; do rm -f watched/probe; touch watched/probe; done
            echo x > watched/file; mv watched/file watched/moved
            until grep -q moved events; do :; done; kill $watcher
        "#,
        check: r#"grep -q 'CREATE file' events; grep -q 'CLOSE_WRITE,CLOSE file' events; grep -q 'MOVED_TO moved' events"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "events",
        needs: &["cc"],
        run: r#"
            cat > main.c <<'END'
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>
int main(void) {
    sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); sigprocmask(SIG_BLOCK, &set, 0);
    int fds[4] = { eventfd(0, EFD_CLOEXEC), timerfd_create(CLOCK_MONOTONIC, 0), signalfd(-1, &set, 0), syscall(SYS_pidfd_open, getpid(), 0) };
    struct itimerspec soon = { .it_value.tv_nsec = 1000 }; int seen = 0, poll = epoll_create1(0);
    for (int i = 0; i < 4; i++) { struct epoll_event e = { EPOLLIN | EPOLLONESHOT, { .u32 = i } }; if (epoll_ctl(poll, EPOLL_CTL_ADD, fds[i], &e)) return 1; }
    eventfd_write(fds[0], 1); timerfd_settime(fds[1], 0, &soon, 0); kill(getpid(), SIGUSR2);
    for (int n = 0; n < 3; n++) { struct epoll_event e; if (epoll_wait(poll, &e, 1, 10000) != 1) return 2; seen |= 1 << e.data.u32; }
    printf("seen %d\n", seen);
    int data = memfd_create("data", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (data < 0) data = memfd_create("data", MFD_CLOEXEC | 8 /* MFD_NOEXEC_SEAL, all that there is in user mode */);
    if (data < 0 || write(data, "memory file\n", 12) != 12) return 3;
    if (fcntl(data, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK)) return 4;
    int pipes[2]; if (pipe(pipes)) return 5; off_t at = 0; fflush(stdout);
    if (sendfile(pipes[1], data, &at, 12) != 12 || tee(pipes[0], pipes[1], 0, 0) < -1) return 6;
    char text[12]; if (read(pipes[0], text, 12) != 12 || write(1, text, 12) != 12) return 7;
    int from = open("main.c", O_RDONLY), to = open("copy.c", O_CREAT | O_WRONLY, 0644);
    return copy_file_range(from, 0, to, 0, 100, 0) == 100 && !posix_fallocate(to, 0, 4096) && !prctl(PR_SET_NAME, "events") ? 0 : 8;
}
END
            cc -o main main.c; ./main
        "#,
        check: r#"[ "$(cat "$OUT")" = 'seen 7
memory file' ]; cmp -n 100 main.c copy.c; [ "$(stat -c %s copy.c)" = 4096 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "threads",
        needs: &["cc"],
        run: r#"
            cat > main.c <<'END'
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; static pthread_barrier_t all; static __thread int own; static long sum;
static void *work(void *n) {
    own = (int)(long)n; pthread_barrier_wait(&all); char name[16]; snprintf(name, 16, "worker-%d", own); pthread_setname_np(pthread_self(), name);
    for (int i = 0; i < 10000; i++) { pthread_mutex_lock(&lock); sum += own; pthread_mutex_unlock(&lock); }
    return 0;
}
int main(void) {
    pthread_t threads[64]; pthread_barrier_init(&all, 0, 64); cpu_set_t cpus; pthread_mutexattr_t attr; pthread_mutexattr_init(&attr);
    if (sched_getaffinity(0, sizeof cpus, &cpus) || sched_setaffinity(0, sizeof cpus, &cpus) || setpriority(PRIO_PROCESS, 0, 5)) return 1;
    for (long n = 0; n < 64; n++) if (pthread_create(&threads[n], 0, work, (void *)n)) return 2;
    for (int n = 0; n < 64; n++) pthread_join(threads[n], 0);
    printf("%ld\n", sum); return 0;
}
END
            cc -O1 -o main main.c -pthread; ./main
        "#,
        check: r#"[ "$(cat "$OUT")" = 20160000 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "processes",
        run: r#"
            for i in {1..300}; do (echo "$i" > "/tmp/$i") & done; wait; cat /tmp/[0-9]* | sort -n | tail -1 > most
            sh -c '(setsid sleep 100 > /dev/null 2>&1 & echo $! > daemon)'; ps -o comm= -p "$(cat daemon)" > comm
            nice -n 5 true; kill -STOP "$(cat daemon)"; kill -CONT "$(cat daemon)"; kill "$(cat daemon)"; ulimit -n 128; ulimit -n > files
            ps -eo pid= | wc -l > visible
        "#,
        check: r#"[ "$(cat most comm files | tr '\n' ' ')" = '300 sleep 128 ' ]; [ "$(cat visible)" -lt 20 ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "gdb",
        needs: &["gdb", "cc"],
        set: &["syscalls.allow=debug"],
        run: r#"
            echo 'int twice(int n) { return 2 * n; } int main(void) { return twice(21) != 42; }' > main.c; cc -g -O0 -o main main.c
            gdb -q -nx -batch -ex 'break twice' -ex run -ex 'print n' -ex 'set var n = 4' -ex finish -ex continue ./main
        "#,
        check: r#"grep -q '^$1 = 21' "$OUT"; grep -q 'Value returned is $2 = 8' "$OUT"; grep -q 'exited with code 01' "$OUT""#,
        ..Workload::PLAIN
    },
    Workload {
        name: "strace",
        needs: &["strace"],
        set: &["syscalls.allow=debug"],
        run: "strace -f -o trace -e trace=openat,execve sh -c 'cat /etc/hostname; true'",
        check: r#"grep -q 'execve("/usr/bin/cat"' trace; grep -q '"/etc/hostname", O_RDONLY' trace"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "sanitizers",
        needs: &["gcc"],
        // The leak check stops its own threads with ptrace.
        set: &["syscalls.allow=debug"],
        run: r#"
            echo '#include <stdlib.h>
                int main(int n, char **v) { char *p = malloc(9); if (n > 1) p[9] = 1; return n < 1 ? (int)(long)p : 0; }' > main.c
            gcc -fsanitize=address -g -o main main.c; ./main || leaked=$?; ./main over || over=$?; echo "$leaked $over" > codes
        "#,
        check: r#"grep -q 'detected memory leaks' "${OUT%.out}.err"; grep -q heap-buffer-overflow "${OUT%.out}.err"; ! grep -q '\b0\b' codes"#,
        ..Workload::PLAIN
    },
];
