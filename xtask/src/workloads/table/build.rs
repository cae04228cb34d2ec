//! Compilers and build systems, each with what it built run inside.

use crate::workloads::workload::Workload;

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "cargo",
        needs: &["cargo", "cc"],
        run: r#"
            mkdir -p app/src app/tests part/src
            cat > app/Cargo.toml <<'END'
[package]
name = "app"
version = "0.1.0"
edition = "2021"
[dependencies]
part = { path = "../part" }
[workspace]
END
            printf '[package]\nname = "part"\nversion = "0.1.0"\nedition = "2021"\n' > part/Cargo.toml
            echo 'pub fn answer() -> u32 { 42 }' > part/src/lib.rs
            cat > app/build.rs <<'END'
fn main() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    std::fs::write(out.join("made.rs"), "pub const MADE: &str = \"by the build script\";").unwrap();
}
END
            cat > app/src/main.rs <<'END'
include!(concat!(env!("OUT_DIR"), "/made.rs"));
fn main() { println!("{} {MADE}", part::answer()); }
#[test] fn inline() { assert_eq!(part::answer(), 42); }
END
            echo '#[test] fn runs() { let out = std::process::Command::new(env!("CARGO_BIN_EXE_app")).output().unwrap();
                assert!(out.status.success() && out.stdout.starts_with(b"42")); }' > app/tests/it.rs
            cd app; cargo build --offline --release; cargo test --offline; target/release/app
        "#,
        check: r#"
            grep -q '^42 by the build script$' "$OUT"; [ "$(grep -c '1 passed' "$OUT")" = 2 ]; [ -x app/target/release/app ]
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "rustc",
        needs: &["rustc", "cc"],
        run: r#"
            echo 'fn main() { let t: Vec<_> = (0..8).map(|n| std::thread::spawn(move || n * n)).collect();
                println!("{}", t.into_iter().map(|t| t.join().unwrap()).sum::<i32>()); }' > main.rs
            rustc -C opt-level=2 main.rs -o main; ./main
        "#,
        check: r#"[ "$(cat "$OUT")" = 140 ]; [ -x main ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "gcc",
        needs: &["gcc", "ar"],
        run: r#"
            echo 'int answer(void) { return 42; }' > lib.c; echo 'int answer(void); int printf(const char *, ...);
                int main(void) { return printf("%d\n", answer()) < 0; }' > main.c
            gcc -O2 -g -fPIC -shared -o libanswer.so lib.c; gcc -pipe -o dynamic main.c -L. -lanswer -Wl,-rpath,"$PWD"
            gcc -flto -c lib.c main.c; ar rcs libanswer.a lib.o; gcc -flto -o fixed main.o libanswer.a
            gcc -fsanitize=undefined -g -o checked main.c lib.c
            ./dynamic; ./fixed; ./checked; cp dynamic /tmp/; /tmp/dynamic
        "#,
        check: r#"[ "$(tr '\n' ' ' < "$OUT")" = '42 42 42 42 ' ]; [ -x fixed ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "cpp",
        needs: &["g++"],
        run: r#"
            cat > main.cpp <<'END'
#include <atomic>
#include <future>
#include <iostream>
#include <filesystem>
#include <vector>
int main() {
    std::atomic<int> sum{0}; std::vector<std::future<void>> all;
    for (int i = 0; i < 16; i++) all.push_back(std::async(std::launch::async, [&sum, i] { sum += i; }));
    for (auto &one : all) one.get();
    try { std::filesystem::directory_iterator it("/no/such/place"); } catch (const std::exception &) { std::cout << "caught " << sum << "\n"; }
}
END
            g++ -std=c++17 -O1 -pthread -o main main.cpp; ./main
        "#,
        check: r#"[ "$(cat "$OUT")" = 'caught 120' ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "make-jobserver",
        needs: &["make", "cc"],
        run: r#"
            mkdir sub; for i in {1..12}; do echo "int f$i(void) { return $i; }" > sub/f$i.c; done
            printf 'all: sub.stamp\n\t@echo "flags $(MAKEFLAGS)"\nsub.stamp:\n\t+$(MAKE) -C sub\n\ttouch $@\n' > Makefile
            printf 'OBJECTS = $(patsubst %%.c,%%.o,$(wildcard *.c))\nliball.a: $(OBJECTS)\n\tar rcs $@ $^\n' > sub/Makefile
            make -j4; make -q sub.stamp
        "#,
        check: r#"grep -q 'jobserver' "$OUT"; [ "$(ar t sub/liball.a | wc -l)" = 12 ]; [ -e sub.stamp ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "cmake",
        needs: &["cmake", "ninja", "cc"],
        run: r#"
            echo 'int main(void) { return 0; }' > main.c
            printf 'cmake_minimum_required(VERSION 3.13)\nproject(app C)\nadd_executable(app main.c)\nenable_testing()\nadd_test(NAME runs COMMAND app)\n' > CMakeLists.txt
            cmake -G Ninja -B build .; cmake --build build -j2; cd build; ctest
        "#,
        check: r#"grep -q '100% tests passed' "$OUT"; [ -x build/app ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "meson",
        needs: &["meson", "ninja", "cc"],
        run: r#"
            echo 'int main(void) { return 0; }' > main.c
            printf "project('app', 'c')\nexe = executable('app', 'main.c')\ntest('runs', exe)\n" > meson.build
            PATH=/usr/bin:$PATH; meson setup build; meson test -C build
        "#,
        check: r#"grep -Eq 'Ok: +1' "$OUT"; [ -x build/app ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "go",
        needs: &["go"],
        run: r#"
            printf 'module app\n\ngo 1.18\n' > go.mod
            cat > main.go <<'END'
package main

import ("fmt"; "sync")

func Sum(n int) (sum int) {
    var group sync.WaitGroup; parts := make(chan int, n)
    for i := 1; i <= n; i++ { group.Add(1); go func(i int) { defer group.Done(); parts <- i }(i) }
    group.Wait(); close(parts)
    for part := range parts { sum += part }
    return
}

func main() { fmt.Println(Sum(100)) }
END
            printf 'package main\n\nimport "testing"\n\nfunc TestSum(t *testing.T) { if Sum(10) != 55 { t.Fatal() } }\n' > main_test.go
            CGO_ENABLED=0 GOFLAGS=-mod=mod GOPROXY=off go build -o app .; ./app; CGO_ENABLED=0 GOPROXY=off go test ./...
        "#,
        check: r#"grep -q '^5050$' "$OUT"; grep -q '^ok' "$OUT"; [ -x app ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "java",
        needs: &["java", "javac"],
        run: r#"
            cat > Sum.java <<'END'
import java.util.stream.IntStream;
public class Sum { public static void main(String[] a) throws Exception {
    long sum = 0; for (int round = 0; round < 200; round++) sum = IntStream.rangeClosed(1, 20000).parallel().asLongStream().sum();
    System.out.println(sum); java.nio.file.Files.writeString(java.nio.file.Path.of("made"), "by java");
} }
END
            javac Sum.java; java Sum
        "#,
        check: r#"grep -q '^200010000$' "$OUT"; [ "$(cat made)" = 'by java' ]"#,
        ..Workload::PLAIN
    },
];
