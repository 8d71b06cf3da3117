//! Arguments that do not fit.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static QUIET: RefCell<bool> = const { RefCell::new(false) };
}

/// The message of a call that panics, without a report on standard error.
#[track_caller]
pub fn message<T>(call: impl FnOnce() -> T) -> String {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.with_borrow(|quiet| *quiet) {
                report(panic);
            }
        }));
    });
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    match outcome {
        Ok(_) => panic!("the arguments were taken"),
        Err(said) => said.downcast::<String>().map_or_else(|_| "no text".to_owned(), |text| *text),
    }
}

/// Checks the message of a call that panics.
#[track_caller]
pub fn refuses<T>(expected: &str, call: impl FnOnce() -> T) {
    let said = message(call);
    assert!(said.contains(expected), "expected “{expected}”, got “{said}”");
}
