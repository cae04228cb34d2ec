//! What happened, for a person: timeline, messages, tokens, denials, resources, read from the agents' records.
//!
//! Pure: records in, text out.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::record::{Record, Tokens};

/// The whole account of a run.
pub fn account(records: &[Record]) -> String {
    let mut text = String::new();
    for section in [
        agents(records),
        timeline(records),
        messages(records),
        tokens(records),
        denials(records),
        resources(records),
    ] {
        text += &section;
        text.push('\n');
    }
    text
}

fn agents(records: &[Record]) -> String {
    let mut text = String::from("Agents\n");
    for record in records {
        let landlock = record
            .landlock_abi
            .map_or_else(String::new, |abi| format!(", Landlock ABI {abi}"));
        line(
            &mut text,
            format_args!(
                "{:<8} policy {} in {} mode{landlock}",
                record.name, record.policy, record.mode
            ),
        );
        line(
            &mut text,
            format_args!("{:<8} layers: {}", "", record.layers.join(" ")),
        );
        for degradation in &record.degradations {
            line(
                &mut text,
                format_args!(
                    "{:<8} without {}: {}",
                    "", degradation.property, degradation.why
                ),
            );
        }
    }
    text
}

/// Every record's lines in one order; a message that is in two records is told once.
fn timeline(records: &[Record]) -> String {
    let mut lines = BTreeMap::new();
    for record in records {
        for entry in &record.timeline {
            lines.entry(entry.seq).or_insert((record, entry));
        }
    }
    let begun = records
        .iter()
        .map(|record| record.started_at_ms)
        .min()
        .unwrap_or_default();
    let mut text = String::from("Timeline\n");
    for (record, entry) in lines.into_values() {
        line(
            &mut text,
            format_args!(
                "{} {:<8} {:<9} {}",
                moment(entry.at_ms - begun),
                record.name,
                entry.kind,
                entry.text
            ),
        );
    }
    text
}

fn messages(records: &[Record]) -> String {
    let begun = records
        .iter()
        .map(|record| record.started_at_ms)
        .min()
        .unwrap_or_default();
    let mut once = BTreeMap::new();
    for message in records.iter().flat_map(|record| &record.messages) {
        once.entry(message.seq).or_insert(message);
    }
    let mut text = String::from("Messages\n");
    for message in once.into_values() {
        let subject = message
            .subject
            .as_deref()
            .map_or_else(String::new, |subject| format!(" {subject}"));
        line(
            &mut text,
            format_args!(
                "{} {} → {}: {}{subject}, {} bytes, {}",
                moment(message.at_ms - begun),
                message.from,
                message.to,
                message.kind,
                message.bytes,
                message.outcome
            ),
        );
    }
    or_none(text)
}

fn tokens(records: &[Record]) -> String {
    let mut text = String::from("Tokens (counted by the gateway)\n");
    for record in records {
        let Tokens {
            requests,
            input,
            output,
            cache_read,
            cache_write,
        } = record.tokens;
        line(
            &mut text,
            format_args!(
                "{:<8} {input} in, {output} out, {} cached, in {requests} requests",
                record.name,
                cache_read + cache_write
            ),
        );
    }
    text
}

fn denials(records: &[Record]) -> String {
    let mut text = String::from("Denials\n");
    for record in records {
        for denial in &record.denials {
            line(
                &mut text,
                format_args!(
                    "{:<8} {}: {} {} ({})",
                    record.name, denial.layer, denial.what, denial.target, denial.rule
                ),
            );
        }
    }
    or_none(text)
}

fn resources(records: &[Record]) -> String {
    let mut text = String::from("Resources\n");
    for record in records {
        let Some(exit) = &record.exit else { continue };
        let lived = record.ended_at_ms.map_or_else(
            || "?".to_owned(),
            |ended| moment(ended - record.started_at_ms),
        );
        let used = exit.resources.user_us + exit.resources.system_us;
        let peak = exit
            .resources
            .memory_peak_bytes
            .unwrap_or(exit.resources.max_rss_kib * 1024);
        let how = match (exit.code, exit.signal) {
            (Some(code), _) => format!("code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no status".to_owned(),
        };
        line(
            &mut text,
            format_args!(
                "{:<8} lived {}, CPU {:.2} s, memory peak {:.1} MB; {} ({how}): {}",
                record.name,
                lived.trim(),
                used as f64 / 1e6,
                peak as f64 / 1e6,
                exit.kind,
                exit.cause
            ),
        );
    }
    text
}

fn moment(ms: i64) -> String {
    format!("{:>7.3} s", ms as f64 / 1000.0)
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "  {what}").expect("writing to a string can't fail");
}

fn or_none(mut section: String) -> String {
    if section.lines().count() == 1 {
        section += "  none\n";
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, timeline: &str) -> Record {
        serde_json::from_str(&format!(
            r#"{{"name":"{name}","policy":"coding","mode":"user","pid":7,"layers":["user-ns"],"landlock_abi":7,
                "degradations":[],"started_at_ms":1000,"ended_at_ms":3500,
                "exit":{{"kind":"exited","code":0,"signal":null,"cause":"program ended",
                         "resources":{{"user_us":250000,"system_us":250000,"max_rss_kib":1000,"memory_peak_bytes":null}}}},
                "tokens":{{"requests":2,"input":30,"output":12,"cache_read":0,"cache_write":0}},
                "messages":[{{"seq":3,"at_ms":1500,"from":"a","to":"b","kind":"request","subject":"fix","bytes":40,"outcome":"delivered"}}],
                "denials":[],"timeline":{timeline}}}"#
        ))
        .expect("a record")
    }

    #[test]
    fn a_message_in_two_records_is_told_once() {
        let line = r#"[{"seq":3,"at_ms":1500,"kind":"message","text":"a → b"}]"#;
        let text = account(&[record("a", line), record("b", line)]);
        assert_eq!(
            text.matches("a → b: request fix, 40 bytes, delivered")
                .count(),
            1,
            "{text}"
        );
        assert_eq!(text.matches("message   a → b").count(), 1, "{text}");
    }

    #[test]
    fn the_account_names_tokens_resources_and_the_absence_of_denials() {
        let text = account(&[record("a", "[]")]);
        assert!(
            text.contains("30 in, 12 out, 0 cached, in 2 requests"),
            "{text}"
        );
        assert!(
            text.contains("lived 2.500 s, CPU 0.50 s, memory peak 1.0 MB; exited (code 0)"),
            "{text}"
        );
        assert!(text.contains("Denials\n  none"), "{text}");
    }
}
