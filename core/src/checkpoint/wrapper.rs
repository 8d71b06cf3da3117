//! What wrappers of a model put before the names of its tensors.

/// `torch.compile`, `DataParallel` and its relatives, PEFT.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "module.", "base_model.model."];

/// The wrapper that is before every one of these names, if one is.
pub(super) fn of_all<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Option<&'static str> {
    let before_all = |wrapper: &str| names.clone().all(|name| name.len() > wrapper.len() && name.starts_with(wrapper));
    names.clone().next()?;
    WRAPPERS.into_iter().find(|wrapper| before_all(wrapper))
}
