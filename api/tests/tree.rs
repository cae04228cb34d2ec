//! The D-Bus tree, served and called over a socket pair: what a peer gets is what was meant.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use agentd_api::*;
use zbus::{Connection, Guid, connection::Builder};

struct Manager;

#[zbus::interface(name = "org.agentd1.Manager")]
impl Manager {
    async fn launch(
        &self,
        spec: LaunchSpec,
        grants: Vec<zbus::OwnedFd>,
    ) -> Result<LaunchReply, Error> {
        if spec.argv == ["nope"] {
            return Err(Error::ProgramNotFound("no such program: nope".to_owned()));
        }
        for grant in grants {
            let mut stream = UnixStream::from(OwnedFd::from(grant));
            stream
                .write_all(spec.argv[0].as_bytes())
                .expect("the other end of the grant is open");
        }
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        (&ours).write_all(b"attached").expect("fits the buffer");
        let id = AgentId::new();
        Ok(LaunchReply {
            id,
            name: spec.name.unwrap_or_else(|| "unnamed".to_owned()),
            path: id.object_path().try_into().expect("a valid path"),
            attach: spec
                .attach
                .unwrap_or(false)
                .then(|| OwnedFd::from(theirs).into()),
            layers: Some(vec!["user-ns".to_owned()]),
            degradations: None,
        })
    }

    async fn agents(&self) -> Result<Vec<AgentSummary>, Error> {
        Ok(vec![
            summary(AgentState::Running, None),
            summary(AgentState::Exited, Some(7)),
        ])
    }
}

fn summary(state: AgentState, exit_code: Option<u8>) -> AgentSummary {
    AgentSummary {
        id: "0198c0de-1111-7222-8333-4444feedbeef"
            .parse()
            .expect("valid"),
        name: "a".to_owned(),
        uid: 1000,
        state,
        policy: "coding".to_owned(),
        driver: None,
        pid: exit_code.is_none().then_some(77),
        workspace: None,
        argv: vec!["true".to_owned()],
        started_at_ms: 1,
        ended_at_ms: None,
        input_tokens: 2,
        output_tokens: 3,
        cost_nano_usd: None,
        exit_cause: exit_code.map(|_| ExitCause::Exited),
        exit_code,
    }
}

async fn pair() -> (Connection, Connection) {
    let (a, b) = UnixStream::pair().expect("socketpair");
    let guid = Guid::generate();
    let server = Builder::unix_stream(a)
        .server(guid)
        .p2p()
        .serve_at(MANAGER_PATH, Manager)
        .build();
    let client = Builder::unix_stream(b).p2p().build();
    let (server, client) = tokio::join!(server, client);
    (server.expect("server side"), client.expect("client side"))
}

#[tokio::test(flavor = "current_thread")]
async fn launch_carries_grants_in_and_the_attach_socket_out() {
    let (_server, client) = pair().await;
    let manager = ManagerProxy::new(&client).await.expect("proxy");
    let (mut mine, grant) = UnixStream::pair().expect("socketpair");
    let mut spec = LaunchSpec::new(vec!["hello".to_owned()]);
    spec.attach = Some(true);
    spec.name = Some("bob".to_owned());
    spec.stdio = Some(StdioMode::Pty);
    spec.env = Some([("A".to_owned(), "b".to_owned())].into());
    let reply = manager
        .launch(&spec, vec![grant.as_fd().into()])
        .await
        .expect("launch");
    drop(grant);
    assert_eq!(reply.name, "bob");
    assert_eq!(
        AgentId::from_object_path(reply.path.as_str()),
        Some(reply.id)
    );
    let mut text = String::new();
    mine.read_to_string(&mut text)
        .expect("what the server wrote");
    assert_eq!(text, "hello");
    text.clear();
    let attach = OwnedFd::from(reply.attach.expect("asked for"));
    UnixStream::from(attach)
        .read_to_string(&mut text)
        .expect("attach stream");
    assert_eq!(text, "attached");
}

#[tokio::test(flavor = "current_thread")]
async fn errors_keep_their_code_and_text() {
    let (_server, client) = pair().await;
    let manager = ManagerProxy::new(&client).await.expect("proxy");
    let spec = LaunchSpec::new(vec!["nope".to_owned()]);
    let error = manager
        .launch(&spec, Vec::new())
        .await
        .expect_err("refused");
    assert_eq!(error.code(), ErrorCode::ProgramNotFound);
    assert_eq!(error.text(), "no such program: nope");
    let error = manager.find("x").await.expect_err("not served here");
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn summaries_keep_absent_values_absent() {
    let (_server, client) = pair().await;
    let manager = ManagerProxy::new(&client).await.expect("proxy");
    let agents = manager.agents().await.expect("agents");
    assert_eq!(
        agents,
        [
            summary(AgentState::Running, None),
            summary(AgentState::Exited, Some(7))
        ]
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_key_that_nobody_knows_refuses_the_launch() {
    let (_server, client) = pair().await;
    let body = (
        std::collections::HashMap::from([
            ("argv", zbus::Variant::from(vec!["true"])),
            ("memory_limit", zbus::Variant::from(1u64)),
        ]),
        Vec::<zbus::Fd<'_>>::new(),
    );
    let error = client
        .call_method(
            None::<&str>,
            MANAGER_PATH,
            Some("org.agentd1.Manager"),
            "Launch",
            &body,
        )
        .await
        .expect_err("unknown key");
    let error = Error::from(error);
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error:?}");
    assert!(error.text().contains("memory_limit"), "{}", error.text());
}
