//! Circles between modules. A module may use its parent and what is inside of
//! it; of modules side by side, one may use the other, but not both each other,
//! straight or through others.
//!
//! Computed from the text: `use` lines and paths that begin with `crate`,
//! `super` or `self`, resolved through what modules hand on by `use`. Tests do
//! not count. Between crates cargo allows no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;

mod text;

use self::text::paths;

/// Names from the crate's root: `["kernel", "events"]`.
type Module = Vec<String>;

/// A crate's modules, with the paths that each names.
#[derive(Debug, Default)]
struct Tree {
    /// Paths from the crate's root that a module imports, by the name they get.
    imports: BTreeMap<Module, BTreeMap<String, Module>>,
    /// All paths from the crate's root that a module names.
    named: BTreeMap<Module, BTreeSet<Module>>,
}

/// A complaint for each circle in the crate whose root file is in `folder`.
pub(crate) fn circles(folder: &Path, name: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    sources(folder, &mut Module::new(), &mut files)?;
    let mut tree = Tree::default();
    for (file, module) in files {
        let source = fs::read_to_string(&file)?;
        tree.add(&module, &source);
    }
    Ok(tree.circles().into_iter().map(|circle| format!("{name}: a circle: {circle}")).collect())
}

/// The files of a crate with their modules, without tests and other programs.
fn sources(folder: &Path, module: &mut Module, into: &mut Vec<(PathBuf, Module)>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if matches!(stem.as_str(), "tests" | "bin") {
            continue;
        }
        if path.is_dir() {
            module.push(stem);
            sources(&path, module, into)?;
            module.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let mut of_file = module.clone();
            if !matches!(stem.as_str(), "lib" | "main" | "mod") {
                of_file.push(stem);
            }
            into.push((path, of_file));
        }
    }
    Ok(())
}

impl Tree {
    fn add(&mut self, module: &[String], source: &str) {
        let imports = self.imports.entry(module.to_vec()).or_default();
        let named = self.named.entry(module.to_vec()).or_default();
        for path in paths(source) {
            let Some(absolute) = absolute(module, &path.path) else { continue };
            if let Some(name) = path.import {
                imports.insert(name, absolute.clone());
            }
            named.insert(absolute);
        }
    }

    /// The module that a path from the root leads to.
    fn resolve(&self, path: &[String], depth: usize) -> Module {
        let mut module = Module::new();
        for (index, name) in path.iter().enumerate() {
            let mut inner = module.clone();
            inner.push(name.clone());
            if self.named.contains_key(&inner) {
                module = inner;
                continue;
            }
            let handed_on = self.imports.get(&module).and_then(|imports| imports.get(name));
            return match handed_on.filter(|target| depth > 0 && target.as_slice() != path) {
                Some(target) => {
                    let whole: Module = target.iter().chain(&path[index + 1..]).cloned().collect();
                    self.resolve(&whole, depth - 1)
                }
                None => module,
            };
        }
        module
    }

    /// Who uses whom among the modules inside of one, by that one.
    fn uses(&self) -> BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> {
        let mut uses: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for (from, named) in &self.named {
            for path in named {
                let to = self.resolve(path, 8);
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if let (Some(one), Some(other)) = (from.get(common), to.get(common)) {
                    let level = uses.entry(from[..common].to_vec()).or_default();
                    level.entry(one.clone()).or_default().insert(other.clone());
                }
            }
        }
        uses
    }

    fn circles(&self) -> Vec<String> {
        let mut circles = Vec::new();
        for (parent, uses) in self.uses() {
            let mut seen = BTreeSet::new();
            for start in uses.keys() {
                let Some(way) = way_back(&uses, start).filter(|_| !seen.contains(start)) else {
                    continue;
                };
                seen.extend(way.iter().cloned());
                let prefix = parent.iter().map(|name| format!("{name}::")).collect::<String>();
                circles.push(format!("{prefix}{{{}}}", way.join(" -> ")));
            }
        }
        circles
    }
}

/// The shortest way from a module to itself.
fn way_back(uses: &BTreeMap<String, BTreeSet<String>>, start: &str) -> Option<Vec<String>> {
    let mut ways: Vec<Vec<String>> = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    let mut next = 0;
    while let Some(way) = ways.get(next).cloned() {
        next += 1;
        let used = way.last().and_then(|last| uses.get(last)).into_iter().flatten();
        for other in used {
            let mut longer = way.clone();
            longer.push(other.clone());
            if other == start {
                return Some(longer);
            }
            if seen.insert(other.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

/// A path from the crate's root; `None` for what is outside of the crate.
fn absolute(module: &[String], path: &[String]) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some(module.iter().chain(rest).cloned().collect()),
        "super" => {
            let ups = path.iter().take_while(|name| *name == "super").count();
            let kept = module.len().checked_sub(ups)?;
            Some(module[..kept].iter().chain(&path[ups..]).cloned().collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let mut tree = Tree::default();
        for (module, source) in files {
            let module: Module =
                module.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
            tree.add(&module, source);
        }
        tree.circles()
    }

    #[test]
    fn circles_are_found_straight_and_through_others() {
        let straight = [("", ""), ("a", "use crate::b::B;"), ("b", "fn f(a: crate::a::A) {}")];
        assert_eq!(found(&straight), ["{a -> b -> a}"]);
        let through = [
            ("", ""),
            ("a", "pub(crate) use crate::{d, b::{self, B}};"),
            ("b", "use super::c::{\n    C,\n};"),
            ("c", "use crate::a::A as B;"),
            ("d", ""),
        ];
        assert_eq!(found(&through), ["{a -> b -> c -> a}"]);
        let inside = [("", ""), ("a", ""), ("a::x", "use super::y::Y;"), ("a::y", "use super::x;")];
        assert_eq!(found(&inside), ["a::{x -> y -> x}"]);
        let deep = [("", ""), ("a", ""), ("a::x", "use crate::b;"), ("b", "use crate::a::x::X;")];
        assert_eq!(found(&deep), ["{a -> b -> a}"]);
    }

    #[test]
    fn what_a_module_hands_on_leads_to_where_it_is() {
        let root = "mod a;\nmod b;\npub use self::a::A;";
        assert_eq!(
            found(&[("", root), ("a", "use crate::b::B;"), ("b", "use crate::A;")]),
            ["{a -> b -> a}"]
        );
    }

    #[test]
    fn parents_tests_and_comments_make_no_circle() {
        let files = [
            ("", "use self::a::A;"),
            ("a", "use super::Root;\nuse self::inner::I;\nuse crate::b::B;"),
            ("a::inner", "use super::A;\nuse crate::a::A2;"),
            ("b", "//! See [`crate::a`].\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n"),
        ];
        assert_eq!(found(&files), [""; 0]);
    }
}
