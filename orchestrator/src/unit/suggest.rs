//! "Did you mean …?": the known word nearest to an unknown one, and the sentence that lists the allowed ones.

use super::diagnostic::Problem;

/// The candidate within two edits (one for short words), if there is one.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let reach = if word.len() <= 3 { 1 } else { 2 };
    let lower = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|c| (distance(&lower, &c.to_ascii_lowercase()), c))
        .filter(|(d, c)| {
            *d <= reach || (lower.len() >= 4 && c.to_ascii_lowercase().starts_with(&lower))
        })
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// `what`, with the nearest of `known` and all of them.
pub(super) fn unknown(what: impl Into<String>, word: &str, known: &[&str]) -> Problem {
    let list = known.join(", ");
    let help = match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean {near}? allowed are {list}"),
        None => format!("allowed are {list}"),
    };
    Problem::new(what, help)
}

/// Edits (insert, delete, replace, swap neighbours) between two words; words over 64 bytes are never near.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_finds_its_word() {
        let known = ["restart", "command", "PRODUCTION"];
        assert_eq!(nearest("comand", known), Some("command"));
        assert_eq!(nearest("production", known), Some("PRODUCTION"));
        assert_eq!(nearest("quota", known), None);
    }
}
