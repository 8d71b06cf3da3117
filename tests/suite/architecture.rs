//! ARCHITECTURE.md draws the floors of each package. These tests compare the drawing with the imports in the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

const PACKAGES: [(&str, &str); 4] =
    [("core", "core/src"), ("kernels", "kernels/src"), ("src", "src"), ("emulator", "emulator/src")];

/// The root of the repository.
fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A module by its path from the root of the package: `["checkpoint", "names"]`.
type Module = Vec<String>;

/// The parsed files of a package.
struct Package {
    files: BTreeMap<Module, syn::File>,
}

impl Package {
    fn read(folder: &str) -> Self {
        let root = root().join(folder);
        let mut files = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    files.insert(module_of(path.strip_prefix(&root).unwrap()), syn::parse_file(&text).unwrap());
                }
            }
        }
        Self { files }
    }

    /// The file that defines what a path from the root names: re-exports are followed.
    fn resolve(&self, path: &[String], depth: usize) -> Option<Module> {
        let len = (0..=path.len()).rev().find(|&len| self.files.contains_key(&path[..len]))?;
        let module = path[..len].to_vec();
        let Some(item) = path.get(len) else { return Some(module) };
        let file = &self.files[&module];
        if depth == 0 || file.items.iter().any(|found| defines(found, item)) {
            return Some(module);
        }
        for import in imports(file, &module).into_iter().filter(|import| import.exported) {
            let named = match import.path.last() {
                Some(last) if last == "*" => [&import.path[..import.path.len() - 1], &path[len..]].concat(),
                _ if import.name == *item => [&import.path[..], &path[len + 1..]].concat(),
                _ => continue,
            };
            if let Some(found) = self.resolve(&named, depth - 1).filter(|found| *found != module) {
                return Some(found);
            }
        }
        Some(module)
    }

    /// The files that each file imports.
    fn imports(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let targets = |(module, file)| {
            let paths = imports(file, module).into_iter();
            // A module that re-exports what its children define does not depend on them.
            let paths = paths.filter(|import| !(import.exported && import.path.starts_with(module)));
            let found = paths.filter_map(|import| self.resolve(&import.path, 8));
            (module, found.filter(|target| target != module && !target.is_empty()).collect())
        };
        self.files.iter().filter(|(module, _)| !module.is_empty()).map(targets).collect()
    }
}

fn module_of(file: &Path) -> Module {
    let mut module: Module = file.with_extension("").iter().map(|part| part.to_str().unwrap().into()).collect();
    module.pop_if(|last| ["mod", "lib"].contains(&last.as_str()));
    module
}

/// Whether an item defines a name; a macro or a function of the same name counts.
fn defines(item: &syn::Item, name: &str) -> bool {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => return item.ident.as_ref().is_some_and(|ident| ident == name),
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        _ => return false,
    };
    ident == name
}

struct Import {
    /// From the root of the package; the last part is `*` for a glob.
    path: Vec<String>,
    name: String,
    exported: bool,
}

/// Every path of a file into its own package: `use` lines, and paths that are written out.
fn imports(file: &syn::File, module: &Module) -> Vec<Import> {
    let mut visitor = Paths { module, found: Vec::new() };
    visitor.visit_file(file);
    visitor.found
}

struct Paths<'a> {
    module: &'a Module,
    found: Vec<Import>,
}

impl Paths<'_> {
    fn add(&mut self, path: &[String], name: &str, exported: bool) {
        let (first, rest) = (path[0].as_str(), &path[1..]);
        let mut base = match first {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            // A child, as in `pub use child::Item`. Anything else is another package.
            _ => [&self.module[..], &[first.to_owned()]].concat(),
        };
        let up = rest.iter().take_while(|part| *part == "super").count();
        base.truncate(base.len().saturating_sub(up));
        base.extend_from_slice(&rest[up..]);
        self.found.push(Import { path: base, name: name.into(), exported });
    }

    fn add_tree(&mut self, tree: &syn::UseTree, path: &mut Vec<String>, exported: bool) {
        match tree {
            syn::UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.add_tree(&inner.tree, path, exported);
                path.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(tree, path, exported)),
            syn::UseTree::Name(syn::UseName { ident }) | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                let name = match tree {
                    syn::UseTree::Rename(renamed) => renamed.rename.to_string(),
                    _ => ident.to_string(),
                };
                let full = if ident == "self" { path.clone() } else { [&path[..], &[ident.to_string()]].concat() };
                self.add(&full, &name, exported);
            }
            syn::UseTree::Glob(_) => self.add(&[&path[..], &["*".to_owned()]].concat(), "*", exported),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // Unit tests may import what they like.
        if !item.attrs.iter().any(|attribute| attribute.path().is_ident("cfg") && is_test(attribute)) {
            visit::visit_item_mod(self, item);
        }
    }

    // `pub(in crate::ops)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&item.tree, &mut Vec::new(), !matches!(item.vis, syn::Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 && ["crate", "super", "self"].contains(&parts[0].as_str()) {
            self.add(&parts, parts.last().unwrap(), false);
        }
        visit::visit_path(self, path);
    }
}

/// Whether a `cfg` names `test`, alone or with others.
fn is_test(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return false };
    list.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|word| word == "test")
}

/// The floors that ARCHITECTURE.md draws for a package, from the ground up: the top-level modules on each.
fn floors(package: &str) -> Vec<BTreeSet<String>> {
    let path = root().join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let heading = format!("floors of {package}\n");
    let drawing = text.split_once(&heading).unwrap_or_else(|| panic!("ARCHITECTURE.md has no `{heading}`")).1;
    let drawing = drawing.split_once("```").unwrap().0;
    drawing.lines().rev().map(|floor| floor.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn imports_only_go_down_the_floors_that_are_drawn() {
    for (package, folder) in PACKAGES {
        let code = Package::read(folder);
        let floors = floors(package);
        let floor = |module: &Module| floors.iter().position(|floor| floor.contains(&module[0]));
        let drawn: BTreeSet<&String> = floors.iter().flatten().collect();
        let present: BTreeSet<&String> = code.files.keys().filter_map(|module| module.first()).collect();
        assert_eq!(drawn, present, "the top-level modules of {folder} and those that ARCHITECTURE.md draws");
        for (module, targets) in code.imports() {
            for target in targets.iter().filter(|target| target[0] != module[0]) {
                assert!(
                    floor(target) < floor(module),
                    "{folder}: `{}` imports `{}`, which ARCHITECTURE.md does not draw below it",
                    module.join("::"),
                    target.join("::")
                );
            }
        }
    }
}

#[test]
fn no_two_files_import_each_other_in_a_circle() {
    for (_, folder) in PACKAGES {
        let code = Package::read(folder);
        let mut left = code.imports();
        // A file that imports none of the remaining files is in no circle, nor is one that none of them imports.
        loop {
            let imported: BTreeSet<&Module> = left.values().flatten().collect();
            let outside = |module: &Module, targets: &BTreeSet<Module>| {
                !imported.contains(module) || targets.iter().all(|target| !left.contains_key(target))
            };
            let found = left.iter().find(|(module, targets)| outside(module, targets)).map(|(module, _)| *module);
            let Some(module) = found else { break };
            left.remove(module);
        }
        let circle: Vec<String> = left
            .iter()
            .map(|(module, targets)| {
                let targets: Vec<String> =
                    targets.iter().filter(|target| left.contains_key(target)).map(|target| target.join("::")).collect();
                format!("{} -> {}", module.join("::"), targets.join(", "))
            })
            .collect();
        assert!(circle.is_empty(), "{folder} has a circle of imports among:\n{}", circle.join("\n"));
    }
}

#[test]
fn core_names_neither_burn_nor_cubecl_and_kernels_name_no_burn() {
    struct Roots(BTreeSet<String>);
    impl<'ast> Visit<'ast> for Roots {
        fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
            if let syn::UseTree::Path(path) = &item.tree {
                self.0.insert(path.ident.to_string());
            }
        }
        fn visit_path(&mut self, path: &'ast syn::Path) {
            self.0.insert(path.segments[0].ident.to_string());
            visit::visit_path(self, path);
        }
    }
    for (folder, forbidden) in [("core/src", &["burn", "cubecl", "cubek"][..]), ("kernels/src", &["burn"][..])] {
        for (module, file) in Package::read(folder).files {
            let mut roots = Roots(BTreeSet::new());
            roots.visit_file(&file);
            for root in roots.0.iter().filter(|root| *root != "burn_deepspeed_core") {
                let named = forbidden.iter().any(|name| root == name || root.starts_with(&format!("{name}_")));
                assert!(!named, "{folder}: `{}` names `{root}`", module.join("::"));
            }
        }
    }
}

#[test]
fn no_file_has_more_than_400_lines() {
    for (_, folder) in PACKAGES {
        let mut folders = vec![root().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let lines = std::fs::read_to_string(&path).unwrap().lines().count();
                    assert!(lines <= 400, "{} has {lines} lines", path.display());
                }
            }
        }
    }
}
