//! Topics and patterns: dot-separated words, `*` stands for exactly one word, `#` for any number
//! of words, none included.
//!
//! `build.linux.done` is matched by `build.linux.done`, `build.*.done`, `build.#` and `#`, not by
//! `build.*`. Topics that begin with `agentd.` are the bus's own: agents read them, only it writes.
//!
//! Pure. Matching takes no memory and time linear in practice, words × words at worst.

#![forbid(unsafe_code)]

use crate::message::TOPIC_MAX;

/// Topics under this prefix are published by the bus alone.
pub const RESERVED_PREFIX: &str = "agentd.";
/// One event each time an agent comes or goes; type `joined` or `gone`, data the agent's name.
pub const PEERS_TOPIC: &str = "agentd.peers";

/// Why a text is not a topic or pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    #[error("a topic can't be empty")]
    Empty,
    #[error("topic of {len} bytes is over the limit of {TOPIC_MAX}")]
    TooLong { len: usize },
    #[error("topic {topic:?} has an empty word: words are separated by single dots")]
    EmptyWord { topic: String },
    #[error("topic {topic:?} has {found:?}: words are printable characters without blanks")]
    Character { topic: String, found: char },
    #[error(
        "topic {topic:?} has a wildcard: messages go to one exact topic, patterns are for subscribing"
    )]
    Wildcard { topic: String },
    #[error(
        "pattern {topic:?} mixes a wildcard with other characters: `*` and `#` are whole words"
    )]
    PartialWildcard { topic: String },
}

/// Checks a topic to publish to.
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    check_pattern(topic)?;
    if topic.contains(['*', '#']) {
        return Err(TopicError::Wildcard {
            topic: topic.to_owned(),
        });
    }
    Ok(())
}

/// Checks a pattern to subscribe with.
pub fn check_pattern(pattern: &str) -> Result<(), TopicError> {
    if pattern.is_empty() {
        return Err(TopicError::Empty);
    }
    if pattern.len() > TOPIC_MAX {
        return Err(TopicError::TooLong { len: pattern.len() });
    }
    if let Some(found) = pattern
        .chars()
        .find(|c| c.is_control() || c.is_whitespace())
    {
        return Err(TopicError::Character {
            topic: pattern.to_owned(),
            found,
        });
    }
    for word in pattern.split('.') {
        if word.is_empty() {
            return Err(TopicError::EmptyWord {
                topic: pattern.to_owned(),
            });
        }
        if word.len() > 1 && word.contains(['*', '#']) {
            return Err(TopicError::PartialWildcard {
                topic: pattern.to_owned(),
            });
        }
    }
    Ok(())
}

/// Does `pattern` cover `topic`? Both must have been checked; unchecked ones just don't match.
pub fn matches(pattern: &str, topic: &str) -> bool {
    let (pattern, topic) = (pattern.as_bytes(), topic.as_bytes());
    // Where the next word begins; one behind the end: there is none.
    let (mut p, mut t) = (0, 0);
    // Greedy matching with one point of return: on a mismatch, let the last `#` eat one more word.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p > pattern.len() {
            if t > topic.len() {
                return true;
            }
        } else if is_word(pattern, p, b'#') {
            p += 2;
            if p > pattern.len() {
                return true;
            }
            retry = Some((p, t));
            continue;
        } else if t <= topic.len() {
            if is_word(pattern, p, b'*') {
                p += 2;
                t = end_of_word(topic, t) + 1;
                continue;
            }
            let same = common(&pattern[p..], &topic[t..]);
            if ends(pattern, p + same) && ends(topic, t + same) {
                p += same + 1;
                t += same + 1;
                continue;
            }
        }
        let Some((after_hash, from)) = retry else {
            return false;
        };
        if from > topic.len() {
            return false;
        }
        p = after_hash;
        t = end_of_word(topic, from) + 1;
        retry = Some((p, t));
    }
}

/// Whether no word goes on at `at`.
fn ends(text: &[u8], at: usize) -> bool {
    text.get(at).is_none_or(|byte| *byte == b'.')
}

fn is_word(text: &[u8], at: usize, word: u8) -> bool {
    text.get(at) == Some(&word) && ends(text, at + 1)
}

fn end_of_word(text: &[u8], from: usize) -> usize {
    let mut at = from;
    while !ends(text, at) {
        at += 1;
    }
    at
}

/// Bytes that the first words of both have in common.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter()
        .zip(b)
        .take_while(|(a, b)| a == b && **a != b'.')
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards_mean_what_the_documentation_says() {
        for (pattern, topic, expected) in [
            ("build.linux.done", "build.linux.done", true),
            ("build.linux", "build.linux.done", false),
            ("build.*.done", "build.linux.done", true),
            ("build.*", "build.linux.done", false),
            ("build.*", "build", false),
            ("build.#", "build.linux.done", true),
            ("build.#", "build", true),
            ("#", "build", true),
            ("#.done", "build.linux.done", true),
            ("#.done", "done", true),
            ("#.linux.#", "build.linux.done", true),
            ("#.linux", "build.linux.done", false),
            ("#.a.#.b", "a.x.a.b", true),
            ("#.a.b", "a.a.a.c.a.b", true),
            ("*", "build.linux", false),
        ] {
            assert_eq!(
                matches(pattern, topic),
                expected,
                "{pattern} against {topic}"
            );
        }
    }

    #[test]
    fn malformed_topics_are_named() {
        assert_eq!(check_topic(""), Err(TopicError::Empty));
        assert!(matches!(
            check_topic("a..b"),
            Err(TopicError::EmptyWord { .. })
        ));
        assert!(matches!(
            check_topic("a b"),
            Err(TopicError::Character { found: ' ', .. })
        ));
        assert!(matches!(
            check_topic("a.*"),
            Err(TopicError::Wildcard { .. })
        ));
        assert!(matches!(
            check_pattern("a.b*"),
            Err(TopicError::PartialWildcard { .. })
        ));
        assert!(matches!(
            check_pattern(&"a".repeat(129)),
            Err(TopicError::TooLong { len: 129 })
        ));
        assert_eq!(check_pattern("a.*.#"), Ok(()));
    }

    /// The definition, as plain recursion.
    fn reference(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            (["#", rest @ ..], _) => {
                reference(rest, topic) || (!topic.is_empty() && reference(pattern, &topic[1..]))
            }
            (["*", p @ ..], [_, t @ ..]) => reference(p, t),
            ([a, p @ ..], [b, t @ ..]) if a == b => reference(p, t),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn matching_equals_its_definition(
            pattern in proptest::collection::vec("[ab#*]", 1..7),
            topic in proptest::collection::vec("[ab]", 1..9),
        ) {
            let p: Vec<&str> = pattern.iter().map(String::as_str).collect();
            let t: Vec<&str> = topic.iter().map(String::as_str).collect();
            prop_assert_eq!(matches(&p.join("."), &t.join(".")), reference(&p, &t));
        }

        /// Words that begin alike, and texts that no check would let pass.
        #[test]
        fn matching_equals_its_definition_for_any_text(
            pattern in "[ab#*.]{0,9}",
            topic in "([ab]{0,3}\\.){0,4}[ab*é]{0,3}",
        ) {
            let p: Vec<&str> = pattern.split('.').collect();
            let t: Vec<&str> = topic.split('.').collect();
            prop_assert_eq!(matches(&pattern, &topic), reference(&p, &t));
        }
    }
}
