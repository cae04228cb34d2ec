//! `%i`, `%n`, `%p` and `%%` in the values of a unit. Four and no more: another one is an error, as is a bare `%`.

use super::name::UnitName;

const KNOWN: &str =
    "%n is the unit's name, %p what stands before its @, %i its instance, %% a percent sign";

/// `text` with its specifiers filled in for `unit`.
///
/// # Errors
/// What is wrong, and what the specifiers are.
pub(super) fn expand(text: &str, unit: &UnitName) -> Result<String, (String, &'static str)> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let mut behind = rest[at + 1..].chars();
        match behind.next() {
            Some('%') => out.push('%'),
            Some('n') => out.push_str(unit.as_str()),
            Some('p') => out.push_str(unit.prefix()),
            Some('i') => match unit.instance() {
                Some(instance) => out.push_str(instance),
                None if unit.is_template() => out.push_str("INSTANCE"),
                None => {
                    return Err((
                        "%i has no meaning in a unit without an instance".into(),
                        "only templates (NAME@.toml) have instances",
                    ));
                }
            },
            Some(c) => return Err((format!("%{c} is no specifier"), KNOWN)),
            None => return Err(("a % stands alone at the end".into(), KNOWN)),
        }
        rest = behind.as_str();
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifiers_are_filled_in_and_unknown_ones_refused() {
        let unit = UnitName::parse("coder@api").unwrap();
        let full = expand("%n|%p|%i|100%%", &unit).unwrap();
        assert_eq!(full, "coder@api|coder|api|100%");
        for (text, needle) in [
            ("%x", "%x is no specifier"),
            ("5%", "alone"),
            ("% ", "no specifier"),
        ] {
            let (problem, help) = expand(text, &unit).unwrap_err();
            assert!(
                problem.contains(needle) && help.contains("%i"),
                "{problem}; {help}"
            );
        }
        let plain = UnitName::parse("coder").unwrap();
        assert!(
            expand("%i", &plain)
                .unwrap_err()
                .0
                .contains("without an instance")
        );
    }
}
