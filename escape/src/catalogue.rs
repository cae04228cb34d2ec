//! All cases, in the order in which they are tried: what only looks comes first, what uses a lot or leaves something
//! behind comes last.
//!
//! Pure.

use crate::case::Case;
use crate::cases;

/// Every case.
pub fn all() -> Vec<Case> {
    cases::FAMILIES
        .iter()
        .flat_map(|(family, list)| list.iter().map(|case| case.of(family)))
        .collect()
}

/// The cases with these ids or of these families; all for none. Those that want a session of their own only by their id.
/// A word with a dash before it leaves a case out.
pub fn select(words: &[&str]) -> Result<Vec<Case>, String> {
    let all = all();
    let (left_out, only): (Vec<&str>, Vec<&str>) =
        words.iter().partition(|word| word.starts_with('-'));
    let left_out: Vec<&str> = left_out.iter().map(|word| &word[1..]).collect();
    for word in only.iter().chain(&left_out) {
        if !all.iter().any(|case| matches(case, word)) {
            return Err(format!(
                "{word}: there is no such case or family; agentd-escape list names them"
            ));
        }
    }
    Ok(all
        .into_iter()
        .filter(|case| !left_out.iter().any(|word| matches(case, word)))
        .filter(|case| match case.alone {
            true => only.contains(&case.id),
            false => only.is_empty() || only.iter().any(|word| matches(case, word)),
        })
        .collect())
}

fn matches(case: &Case, word: &str) -> bool {
    case.id == word || case.family == word
}

/// Changes whenever a case comes, goes or means something else: FNV-1a over the catalogue's text.
pub fn digest() -> String {
    let text = serde_json::to_string(&all()).unwrap_or_default();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_unique_and_there_are_enough() {
        let all = all();
        let ids: BTreeSet<&str> = all.iter().map(|case| case.id).collect();
        assert_eq!(ids.len(), all.len());
        assert!(all.len() >= 220, "{} cases", all.len());
    }

    #[test]
    fn an_unknown_id_is_an_error_that_names_it() {
        let error = select(&["fs_read_absolutely"]).expect_err("no such case");
        assert!(error.contains("fs_read_absolutely"), "{error}");
        assert_eq!(select(&["fs_read_abs"]).map(|cases| cases.len()), Ok(1));
    }

    #[test]
    fn a_dash_leaves_a_case_or_a_family_out() {
        let chosen = |words: &[&str]| select(words).map(|cases| cases.len());
        let everything = chosen(&[]).expect("all");
        assert_eq!(chosen(&["-fs_read_abs"]), Ok(everything - 1));
        assert_eq!(
            chosen(&["tty", "-tty_sti"]),
            Ok(chosen(&["tty"]).expect("a family") - 1)
        );
        assert!(select(&["-fs_read_absolutely"]).is_err());
    }

    #[test]
    fn only_what_no_effect_on_the_host_shows_is_taken_for_emulated() {
        for case in all().iter().filter(|case| case.emulated.is_some()) {
            assert_eq!(case.effect, crate::case::Effect::Inside, "{}", case.id);
        }
    }
}
