//! A host that wants a token for everything: git over smart HTTP (the real git-http-backend), and files for registries.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncWriteExt as _;

/// Loopback, but not an address that NO_PROXY of a sandbox lists.
pub const HOST: &str = "127.0.0.2";

/// This machine's own name, if it leads to loopback: for clients that can't verify an address through a proxy.
pub fn own_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    (name != "localhost" && loopback(&name).is_some()).then_some(name)
}

fn loopback(host: &str) -> Option<SocketAddr> {
    use std::net::ToSocketAddrs as _;
    let mut addresses = (host, 0).to_socket_addrs().ok()?;
    addresses.find(|a| a.is_ipv4() && a.ip().is_loopback())
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub line: String,
    pub authorization: String,
    pub cookie: String,
}

/// What is served, and what was asked.
#[derive(Debug, Default)]
pub struct Shelf {
    /// By path: the content, and the `authorization` it takes.
    pub files: Mutex<HashMap<String, (Vec<u8>, String)>>,
    pub seen: Mutex<Vec<Seen>>,
    /// Below it are repositories, at `/git`.
    pub repositories: PathBuf,
    pub git_authorization: String,
}

/// A running server; ends when dropped.
pub struct Forge {
    pub host: String,
    pub port: u16,
    pub shelf: Arc<Shelf>,
    /// The certificate to trust, PEM.
    pub authority: String,
    _runtime: tokio::runtime::Runtime,
}

impl Forge {
    pub fn start(host: &str, repositories: &Path, git_authorization: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let own = params.self_signed(&key).expect("an authority");
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec![host.to_owned()]).expect("an address");
        let leaf = leaf.signed_by(&leaf_key, &issuer).expect("a certificate");
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .expect("a server");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let shelf = Arc::new(Shelf {
            repositories: repositories.to_owned(),
            git_authorization: git_authorization.to_owned(),
            ..Shelf::default()
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let address = loopback(host).expect("the host leads to loopback");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(address))
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = Arc::clone(&shelf);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shelf) = (acceptor.clone(), Arc::clone(&serving));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = hyper::service::service_fn(move |request| {
                        let shelf = Arc::clone(&shelf);
                        async move { Ok::<_, Infallible>(shelf.answer(request).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    if let Err(error) = connection
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                    {
                        eprintln!("forge: {error}");
                    }
                });
            }
        });
        Self {
            host: host.to_owned(),
            port,
            shelf,
            authority: pem(own.der()),
            _runtime: runtime,
        }
    }

    pub fn put(&self, path: &str, authorization: &str, content: impl Into<Vec<u8>>) {
        let entry = (content.into(), authorization.to_owned());
        self.shelf
            .files
            .lock()
            .expect("no panic")
            .insert(path.to_owned(), entry);
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}:{}{path}", self.host, self.port)
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|l| std::str::from_utf8(l).expect("base64"))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

impl Shelf {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let header = |name: &str| {
            let value = request.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let authorization = header("authorization");
        self.seen.lock().expect("no panic").push(Seen {
            line: format!("{} {}", request.method(), request.uri()),
            authorization: authorization.clone(),
            cookie: header("cookie"),
        });
        let path = request.uri().path().to_owned();
        if path.starts_with("/git/") {
            if authorization != self.git_authorization {
                return status(401);
            }
            return self.git(request).await;
        }
        match self.files.lock().expect("no panic").get(&path) {
            Some((_, wanted)) if *wanted != authorization => status(401),
            Some((content, _)) => {
                let kind = if path.ends_with('/') {
                    "text/html"
                } else {
                    "application/octet-stream"
                };
                let response = Response::builder().header("content-type", kind);
                response
                    .body(Full::new(Bytes::from(content.clone())))
                    .expect("an answer")
            }
            None => status(404),
        }
    }

    /// CGI (RFC 3875), as far as git needs it.
    async fn git(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let header = |name: &str| {
            let value = head.headers.get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let mut child = tokio::process::Command::new("/usr/lib/git-core/git-http-backend")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("GIT_PROJECT_ROOT", &self.repositories)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REMOTE_USER", "bot")
            .env("REQUEST_METHOD", head.method.as_str())
            .env("PATH_INFO", head.uri.path().trim_start_matches("/git"))
            .env("QUERY_STRING", head.uri.query().unwrap_or_default())
            .env("CONTENT_TYPE", header("content-type"))
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("GIT_PROTOCOL", header("git-protocol"))
            .env("CONTENT_LENGTH", body.len().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start git-http-backend");
        let mut stdin = child.stdin.take().expect("piped");
        let feeding = tokio::spawn(async move {
            // It may answer without reading everything.
            if let Err(error) = stdin.write_all(&body).await {
                eprintln!("forge: {error}");
            }
        });
        let output = child
            .wait_with_output()
            .await
            .expect("git-http-backend ends");
        feeding.await.expect("feeding ends");
        let split = output
            .stdout
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("a CGI answer");
        let mut response = Response::builder();
        for line in String::from_utf8_lossy(&output.stdout[..split]).lines() {
            let (name, value) = line.split_once(": ").expect("a header");
            response = match name {
                "Status" => response.status(value[..3].parse::<u16>().expect("a status")),
                _ => response.header(name, value),
            };
        }
        let body = Bytes::copy_from_slice(&output.stdout[split + 4..]);
        response.body(Full::new(body)).expect("an answer")
    }
}

fn status(code: u16) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"no\n")));
    *response.status_mut() = hyper::StatusCode::from_u16(code).expect("a status");
    response
}
