//! The adder of the repository adds, and both of its files hold the same model.

use std::process::Command;

#[test]
fn the_adder_of_the_repository_passes_its_evaluation() {
    let evaluated = Command::new(env!("CARGO_BIN_EXE_train-adder")).arg("--evaluate").output();
    let evaluated = evaluated.expect("the program starts");
    let (output, error) = (String::from_utf8_lossy(&evaluated.stdout), String::from_utf8_lossy(&evaluated.stderr));
    assert!(evaluated.status.success(), "{output}{error}");
    assert!(output.contains("held-out sums:"), "{output}");
}
