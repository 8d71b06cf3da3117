//! Names in error messages: the nearest known one, and lists of them.

/// The known name that is spelled most like `name`, if one is close.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.clone())
}

/// The nearest name in parentheses, for the end of a message; nothing if there is none.
pub fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (nearest: `{name}`)")).unwrap_or_default()
}

/// The first twelve items, and the number of the others.
pub fn list<T: std::fmt::Display>(items: &[T]) -> String {
    const SHOWN: usize = 12;
    let mut text = items.iter().take(SHOWN).map(T::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text.push_str(&format!(", and {} more", items.len() - SHOWN));
    }
    text
}
