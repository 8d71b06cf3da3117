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

/// Items of a list that are shown.
const SHOWN: usize = 12;

/// The first twelve items, and the number of the others.
pub fn list<T: std::fmt::Display>(items: &[T]) -> String {
    first(items.iter(), items.len())
}

/// The numbers from 1 to `last`, as [`list`] shows them.
pub(crate) fn up_to(last: usize) -> String {
    first(1..=last, last)
}

fn first(items: impl Iterator<Item: std::fmt::Display>, number: usize) -> String {
    let mut text = items.take(SHOWN).map(|item| item.to_string()).collect::<Vec<_>>().join(", ");
    if number > SHOWN {
        text.push_str(&format!(", and {} more", number - SHOWN));
    }
    text
}
