//! Changing one program of an object, so that the verifier refuses it.

/// The object with the first instruction of `section` replaced by one that no kernel knows.
pub fn spoil(object: &[u8], section: &str) -> Vec<u8> {
    let mut spoilt = object.to_vec();
    let at = offset(object, section).unwrap_or_else(|| panic!("no section {section}"));
    spoilt[at..at + 8].copy_from_slice(&[0xff; 8]);
    spoilt
}

/// Where a section's bytes begin (elf(5), 64 bits, little-endian).
fn offset(object: &[u8], section: &str) -> Option<usize> {
    let number = |at: usize, bytes: usize| {
        let field = &object[at..at + bytes];
        field
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    let (headers, size, count, names) = (
        number(0x28, 8),
        number(0x3a, 2),
        number(0x3c, 2),
        number(0x3e, 2),
    );
    let header = |index: usize| headers + index * size;
    let names = number(header(names) + 0x18, 8);
    let index = (0..count).find(|index| {
        let name = &object[names + number(header(*index), 4)..];
        name.starts_with(section.as_bytes()) && name[section.len()] == 0
    })?;
    Some(number(header(index) + 0x18, 8))
}
