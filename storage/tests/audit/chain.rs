//! The chain itself: cut, relinked, started anew, under another key.

use super::*;

/// Removes everything that was recorded from entry `from` on, entries and rows, as thoroughly as can be.
async fn cut(path: &Path, from: u64) {
    let mut db = intruder(path).await;
    let rows = sqlx::query("SELECT key FROM chain WHERE n >= ?1 AND tbl = 2")
        .bind(i64::try_from(from).unwrap())
        .fetch_all(&mut db)
        .await
        .unwrap();
    for row in rows {
        let key: i64 = row.get("key");
        run(&mut db, &format!("DELETE FROM events WHERE seq = {key}")).await;
    }
    run(&mut db, &format!("DELETE FROM chain WHERE n >= {from}")).await;
    db.close().await.unwrap();
}

#[tokio::test]
async fn a_tail_that_is_cut_off_is_found_at_once_and_after_the_next_start() {
    let (_folder, path) = sample().await;
    let before = is_whole(&path).await;
    let store = Store::open(&path).await.unwrap();
    for n in 0..3 {
        store
            .record_durable(note("a", &n.to_string()))
            .await
            .unwrap();
    }
    store.close().await.unwrap();
    let after = is_whole(&path).await;
    cut(&path, before.entries + 1).await;
    let verification = verified(&path).await;
    assert_eq!(kinds(&verification), [FindingKind::Cut]);
    assert_eq!(verification.findings[0].entry, Some(before.entries + 1));
    // A copy of the database alone tells nothing, but for who noted the head.
    let lone = Verify {
        on_file: None,
        wants_file: false,
        ..in_place(&path)
    };
    assert!(verify(&lone).await.unwrap().ok);
    let with_noted = Verify {
        noted: Some(noted(&after)),
        ..lone.clone()
    };
    let verification = verify(&with_noted).await.unwrap();
    assert_eq!(kinds(&verification), [FindingKind::Cut]);
    assert_eq!(verification.noted_found, Some(false));
    // Without the head's file it is missing itself.
    let no_file = Verify {
        on_file: None,
        ..in_place(&path)
    };
    assert_eq!(kinds(&verify(&no_file).await.unwrap()), [FindingKind::Head]);
    // agentd goes on, and says so on record for ever.
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.incidents().len(), 1);
    store.record_durable(note("a", "later")).await.unwrap();
    store.close().await.unwrap();
    let verification = verified(&path).await;
    assert_eq!(kinds(&verification), [FindingKind::Incident]);
    let incident = verification.notes.last().unwrap();
    assert_eq!(incident.kind, NoteKind::Cut);
    let known = Verify {
        known: vec![incident.seq],
        ..in_place(&path)
    };
    assert!(verify(&known).await.unwrap().ok);
}

#[tokio::test]
async fn a_lost_head_file_and_a_lost_chain_are_noted_by_the_next_start() {
    let (_folder, path) = sample().await;
    let head = path.with_extension("db.head");
    for (spoil, expected) in [
        ("", NoteKind::HeadLost),
        ("DELETE FROM chain", NoteKind::HeadLost),
    ] {
        let (_copied, path) = copy(&path);
        std::fs::remove_file(path.with_file_name(head.file_name().unwrap())).unwrap();
        if !spoil.is_empty() {
            run(&mut intruder(&path).await, spoil).await;
        }
        Store::open(&path).await.unwrap().close().await.unwrap();
        let verification = verified(&path).await;
        assert_eq!(kinds(&verification), [FindingKind::Incident], "{spoil}");
        assert!(verification.notes.iter().any(|it| it.kind == expected));
    }
}

#[tokio::test]
async fn another_key_is_found_and_noted() {
    let (folder, path) = sample().await;
    let key = is_whole(&path).await.key;
    for name in ["audit.key", "audit.pub"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let store = Store::open(&path).await.unwrap();
    assert_ne!(store.public_key().to_string(), key);
    store.close().await.unwrap();
    // Against the new key nothing before holds; against the old one, nothing after.
    let verification = verified(&path).await;
    assert!(kinds(&verification).contains(&FindingKind::Signature));
    assert!(kinds(&verification).contains(&FindingKind::Incident));
    let old = Verify {
        key: key.parse().unwrap(),
        ..in_place(&path)
    };
    let verification = verify(&old).await.unwrap();
    let kinds = kinds(&verification);
    assert!(kinds.contains(&FindingKind::Signature), "{kinds:?}");
    assert!(kinds.contains(&FindingKind::Incident), "{kinds:?}");
}

#[tokio::test]
async fn the_key_is_the_owners_alone_and_never_written_over() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, path) = sample().await;
    let key = folder.path().join("audit.key");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let bytes = std::fs::read(&key).unwrap();
    Store::open(&path).await.unwrap().close().await.unwrap();
    assert_eq!(std::fs::read(&key).unwrap(), bytes);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Store::open(&path).await.unwrap_err();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(text.contains("chmod 600"), "{text}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "no key").unwrap();
    assert!(Store::open(&path).await.is_err());
    assert_eq!(std::fs::read(&key).unwrap(), b"no key");
}

/// Links as anybody can compute them who has read the source.
fn link(prev: &[u8], n: u64, tag: u8, ends: bool, key: i64, digest: &[u8]) -> Vec<u8> {
    let mut bytes = b"agentd link 1\0".to_vec();
    bytes.extend(prev);
    bytes.extend(n.to_be_bytes());
    bytes.extend([tag, u8::from(ends)]);
    bytes.extend(key.to_be_bytes());
    bytes.extend(digest);
    ring::digest::digest(&ring::digest::SHA256, &bytes)
        .as_ref()
        .to_vec()
}

/// Writes every link anew, so that the chain is one again: all that can be done without the private key.
async fn relink(db: &mut SqliteConnection) {
    let rows = sqlx::query("SELECT * FROM chain ORDER BY n")
        .fetch_all(&mut *db)
        .await
        .unwrap();
    let mut prev = vec![0; 32];
    for row in rows {
        let n: i64 = row.get("n");
        sqlx::query("UPDATE chain SET prev = ?1 WHERE n = ?2")
            .bind(&prev)
            .bind(n)
            .execute(&mut *db)
            .await
            .unwrap();
        let tag: i64 = row.get("tbl");
        let ends = row.get::<Option<Vec<u8>>, _>("signature").is_some();
        let digest: Vec<u8> = row.get("digest");
        prev = link(
            &prev,
            u64::try_from(n).unwrap(),
            u8::try_from(tag).unwrap(),
            ends,
            row.get("key"),
            &digest,
        );
    }
}

#[tokio::test]
async fn a_chain_written_anew_without_the_private_key_is_found_at_its_first_change() {
    let (_folder, path) = sample().await;
    let mut db = intruder(&path).await;
    // A whole forgery: the row is gone, its entry too, everything after it moves up and is linked anew.
    let sql = "SELECT n FROM chain WHERE tbl = 6 ORDER BY n LIMIT 1";
    let n: i64 = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
    run(
        &mut db,
        "DELETE FROM denials WHERE seq = (SELECT min(seq) FROM denials)",
    )
    .await;
    run(&mut db, &format!("DELETE FROM chain WHERE n = {n}")).await;
    run(
        &mut db,
        &format!("UPDATE chain SET n = n - 1 WHERE n > {n}"),
    )
    .await;
    relink(&mut db).await;
    db.close().await.unwrap();
    let verification = verified(&path).await;
    let first = &verification.findings[0];
    assert_eq!(first.kind, FindingKind::Signature);
    // Its commit began before it and after everything that still verifies.
    assert!(first.entry.unwrap() <= n.cast_unsigned(), "{first:?}");
    assert!(first.entry.unwrap() > 1, "{first:?}");
}
