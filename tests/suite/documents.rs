//! The documents: their links resolve, and the table of operations says what the code does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the repository, without hidden folders and build outputs.
fn documents() -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir()
                && !name.starts_with('.')
                && !["target", "artifacts", "node_modules"].contains(&name.as_str())
            {
                collect(&path, found);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&repository(), &mut found);
    found.sort();
    found
}

/// The lines outside of code blocks.
fn prose(text: &str) -> String {
    let mut code = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !fence && !code
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_string()).collect()
}

/// The anchors that GitHub gives the headings: lower case, spaces as dashes, no punctuation, a number for one that repeats.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for heading in text.lines().filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let free = (1..).map(|count| format!("{anchor}-{count}")).find(|name| !found.contains(name)).unwrap();
        found.insert(if found.contains(&anchor) { free } else { anchor });
    }
    found
}

#[test]
fn relative_links_of_every_document_resolve() {
    let documents = documents();
    assert!(documents.len() > 10, "found only {documents:?}");
    let mut broken = Vec::new();
    for document in &documents {
        let text = prose(&fs::read_to_string(document).unwrap());
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let resolves = target.exists()
                && (anchor.is_empty() || anchors(&prose(&fs::read_to_string(&target).unwrap())).contains(anchor));
            if !resolves {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to nothing:\n{}", broken.join("\n"));
}

/// So that a visitor reads it in a minute.
#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(repository().join("README.md")).unwrap().lines().count();
    assert!(lines < 120, "the README has {lines} lines; move some of them to docs");
}

/// The table of `docs/operations.md` that says which kernel runs where, without its head: operation, DeepSpeed's class, and a
/// cell for each of `ndarray`, `flex` and the CubeCL backends.
fn table_of_operations() -> Vec<[String; 5]> {
    let text = fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("| operation | DeepSpeed's class |")).skip(2);
    let cells = |line: &str| {
        let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect();
        cells.try_into().unwrap()
    };
    rows.take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// The texts between backticks.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn kernels_in_the_table_of_operations_are_modules() {
    let table = table_of_operations();
    let kernels: BTreeSet<_> = table.iter().flat_map(|row| row[2..].iter().flat_map(|cell| code(cell))).collect();
    assert!(kernels.len() > 5, "found only {kernels:?}");
    for kernel in kernels {
        let path = repository().join("kernels/src").join(kernel.replace("::", "/"));
        assert!(
            path.is_dir() || path.with_extension("rs").is_file(),
            "docs/operations.md: there is no kernel `{kernel}`"
        );
    }
}

#[test]
#[cfg(all(feature = "ndarray", feature = "flex"))]
fn the_table_of_operations_says_which_kernel_runs_where() {
    use burn_deepspeed::ops::{ContextProblem, Plan};
    use burn_deepspeed::{ElementType, InferenceBackend, Operations};

    /// Checks a column, and returns the operations of the backend that have kernels.
    fn check<B: InferenceBackend>(column: usize) -> BTreeSet<&'static str> {
        let fast: BTreeSet<_> = B::Ops::fast_operations().iter().copied().collect();
        for row in table_of_operations() {
            let (operation, cell) = (code(&row[0])[0], &row[column]);
            let named = code(cell);
            assert_eq!(fast.contains(operation), !named.is_empty(), "docs/operations.md, {}: {cell}", row[0]);
            assert!(!named.is_empty() || cell == "reference", "docs/operations.md, {}: {cell}", row[0]);
            let tokens = if row[0].contains("up to 8") { 8 } else { 9 };
            let problem =
                |cache: Option<ElementType>| ContextProblem::new(ElementType::F32, tokens, 64, cache.map(Into::into));
            let device = Default::default();
            let plan = match operation {
                "softmax_context" => B::Ops::plan_softmax_context(&problem(Some(ElementType::F32)), &device),
                "masked_attention" => B::Ops::plan_masked_attention(&problem(None), &device),
                _ => continue,
            };
            let Plan::Kernel(kernel) = plan else { panic!("{}: {plan}", row[0]) };
            assert_eq!(*cell, format!("`{kernel}`"), "docs/operations.md, {}", row[0]);
        }
        fast
    }
    let backends = [
        check::<burn_ndarray::NdArray>(2),
        check::<burn_flex::Flex>(3),
        #[cfg(feature = "vulkan")]
        check::<burn_wgpu::Wgpu>(4),
    ];
    let table = table_of_operations();
    let listed: BTreeSet<_> = table.iter().map(|row| code(&row[0])[0]).collect();
    for fast in backends {
        assert!(fast.is_subset(&listed), "docs/operations.md lacks some of {fast:?}");
    }
}

#[test]
fn the_table_of_families_is_that_of_the_records() {
    let text = fs::read_to_string(repository().join("docs/checkpoints.md")).unwrap();
    let table = burn_deepspeed::load::families::table();
    assert!(text.contains(&table), "copy what `generate -- --list` prints into docs/checkpoints.md:\n{table}");
}

#[test]
fn the_table_of_architectures_is_that_of_the_records() {
    let text = fs::read_to_string(repository().join("docs/checkpoints.md")).unwrap();
    let table = burn_deepspeed::load::gguf::table();
    assert!(text.contains(&table), "copy what `generate -- --list` prints into docs/checkpoints.md:\n{table}");
}
