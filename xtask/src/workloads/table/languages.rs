//! Interpreters and their package managers; the packages come from the host's stand-in registries.

use crate::workloads::workload::{Network, Workload};

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "python",
        needs: &["python3"],
        run: r#"
            cat > main.py <<'END'
import asyncio, concurrent.futures as f, json, multiprocessing as mp, subprocess, tempfile, threading, mmap, ctypes, ssl

def square(n): return n * n

async def echo():
    async def serve(reader, writer): writer.write((await reader.readline()).upper()); await writer.drain(); writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\n"); answer = await reader.readline(); server.close(); return answer.decode().strip()

if __name__ == "__main__":
    with mp.Pool(4) as pool: squares = sum(pool.map(square, range(100)))
    queue = mp.Queue(); child = mp.Process(target=queue.put, args=(7,)); child.start(); seven = queue.get(); child.join()
    with f.ThreadPoolExecutor(8) as threads: threaded = sum(threads.map(square, range(10)))
    with tempfile.TemporaryFile() as t: t.write(b"x" * 4096); t.flush(); mmap.mmap(t.fileno(), 4096).close()
    strlen = ctypes.CDLL(None).strlen(b"12345")
    out = subprocess.run(["sh", "-c", "cat; exit 3"], input="in", text=True, capture_output=True)
    json.dump([squares, seven, threaded, strlen, out.stdout, out.returncode, asyncio.run(echo())], open("out.json", "w"))
END
            python3 main.py
        "#,
        check: r#"[ "$(cat out.json)" = '[328350, 7, 285, 5, "in", 3, "HELLO"]' ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "venv",
        needs: &["python3"],
        run: r#"
            # Without pip, which takes longest; pip-install makes one with it.
            python3 -m venv --without-pip env; . env/bin/activate
            python -c 'import sys; assert sys.prefix != sys.base_prefix; print(sys.prefix)'
        "#,
        check: r#"grep -q "^$PWD/env$" "$OUT"; [ -e env/pyvenv.cfg ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "pip-install",
        needs: &["python3"],
        network: Network::StandIn,
        prepare: r#"
            mkdir -p "$HOST/simple/demo-part"
            python3 - "$HOST/simple/demo-part" <<'END'
import base64, hashlib, sys, zipfile
info = "demo_part-1.0.dist-info"
files = {
    "demo_part.py": "def answer(): return 42\ndef main(): print('from a console script')\n",
    f"{info}/METADATA": "Metadata-Version: 2.1\nName: demo-part\nVersion: 1.0\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: workloads\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{info}/entry_points.txt": "[console_scripts]\ndemo-part = demo_part:main\n",
}
digest = lambda text: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
files[f"{info}/RECORD"] = "".join(f"{n},sha256={digest(t)},{len(t)}\n" for n, t in files.items()) + f"{info}/RECORD,,\n"
wheel = "demo_part-1.0-py3-none-any.whl"
with zipfile.ZipFile(f"{sys.argv[1]}/{wheel}", "w") as z:
    for name, text in files.items(): z.writestr(name, text)
sha = hashlib.sha256(open(f"{sys.argv[1]}/{wheel}", "rb").read()).hexdigest()
open(f"{sys.argv[1]}/index.html", "w").write(f'<!DOCTYPE html><a href="{wheel}#sha256={sha}">{wheel}</a>')
END
        "#,
        run: r#"
            python3 -m venv env; . env/bin/activate
            pip install --disable-pip-version-check --index-url "$URL/simple/" --trusted-host 127.0.0.2 demo-part
            python -c 'import demo_part; print(demo_part.answer())'; demo-part
        "#,
        check: r#"grep -q '^42$' "$OUT"; grep -q 'from a console script' "$OUT"; ls env/lib/python3*/site-packages/demo_part.py"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "node",
        needs: &["node"],
        run: r#"
            cat > main.js <<'END'
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const fs = require('fs'), http = require('http'), { execFileSync, fork } = require('child_process');
if (!isMainThread) { let n = 0; for (let i = 0; i < workerData; i++) n += i % 7; parentPort.postMessage(n); }
else if (process.argv[2] === 'child') process.send('up');
else (async () => {
    const once = (e, n) => new Promise((ok, no) => { e.once(n, ok); e.once('error', no); });
    const fib = n => n < 2 ? n : fib(n - 1) + fib(n - 2);
    const wasm = new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.from(
        [0,97,115,109,1,0,0,0,1,7,1,96,2,127,127,1,127,3,2,1,0,7,7,1,3,97,100,100,0,0,10,9,1,7,0,32,0,32,1,106,11])));
    const worker = await once(new Worker(__filename, { workerData: 2e6 }), 'message');
    const child = await once(fork(__filename, ['child']), 'message');
    const server = http.createServer((q, a) => a.end('served')).listen(0, '127.0.0.1'); await once(server, 'listening');
    const served = await new Promise(ok => http.get({ port: server.address().port, host: '127.0.0.1' },
        r => r.on('data', d => ok(String(d)))));
    server.close(); server.closeAllConnections?.();
    const watcher = fs.watch('.'); const changed = once(watcher, 'change'); fs.writeFileSync('watched', 'x'); await changed; watcher.close();
    fs.writeFileSync('out', [fib(27), wasm.exports.add(40, 2), worker > 0, child, served, String(execFileSync('echo', ['ran'])).trim()].join(' '));
    process.exit(0);
})();
END
            node main.js
        "#,
        check: r#"[ "$(cat out)" = '196418 42 true up served ran' ]"#,
        ..Workload::PLAIN
    },
    Workload {
        name: "npm-install",
        needs: &["npm", "node", "openssl"],
        network: Network::StandIn,
        prepare: r#"
            mkdir -p "$HOST/npm" package
            echo '{"name":"demo-part","version":"1.0.0","main":"index.js","bin":{"demo-part":"cli.js"},"scripts":{"postinstall":"node install.js"}}' > package/package.json
            echo 'require("fs").writeFileSync("installed", "x");' > package/install.js
            echo 'module.exports = () => 42;' > package/index.js; printf '#!/usr/bin/env node\nconsole.log("from a bin");\n' > package/cli.js
            tar czf "$HOST/npm/demo-part-1.0.0.tgz" package; rm -r package
            integrity="sha512-$(openssl dgst -sha512 -binary "$HOST/npm/demo-part-1.0.0.tgz" | base64 -w0)"
            cat > "$HOST/npm/demo-part" <<END
{"name":"demo-part","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"demo-part","version":"1.0.0","main":"index.js",
"bin":{"demo-part":"cli.js"},"hasInstallScript":true,"dist":{"tarball":"$URL/npm/demo-part-1.0.0.tgz","integrity":"$integrity"}}}}
END
        "#,
        run: r#"
            echo '{"name":"app","version":"1.0.0","scripts":{"test":"node test.js && demo-part"}}' > package.json
            echo 'console.log(require("demo-part")());' > test.js
            npm install --no-audit --no-fund --registry "$URL/npm/" demo-part; npm test
        "#,
        check: r#"grep -q '^42$' "$OUT"; grep -q 'from a bin' "$OUT"; [ -e node_modules/demo-part/installed ]; [ -L node_modules/.bin/demo-part ]"#,
        ..Workload::PLAIN
    },
];
