//! Which file of a crate imports which, read from the source: `use` lines and paths within code, re-exports followed to
//! the file that defines the item. Comments and unit tests are left out. It knows the module layout, not the language: a
//! path that a macro puts together is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path from the root of its crate, which is empty.
type Module = Vec<String>;

/// The files of a crate, by their modules.
pub struct Crate {
    files: BTreeMap<Module, Source>,
    /// How other crates call this one.
    name: &'static str,
}

struct Source {
    path: PathBuf,
    /// Without its `use` statements.
    code: String,
    uses: Vec<Use>,
}

/// One path of a `use` statement.
struct Use {
    /// The name that the item has in this file.
    name: String,
    path: Vec<String>,
    /// Whether it hands the item on (`pub use`).
    is_reexport: bool,
}

/// By file, the files that it imports from.
pub type Imports = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

/// The files under a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// What a file holds, apart from its unit tests and comments.
pub fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let end = ["#[cfg(test)]\nmod tests", "#[cfg(test)]\n#[allow"].into_iter().filter_map(|mark| text.find(mark)).min();
    let code = text[..end.unwrap_or(text.len())].lines().map(|line| line.split("//").next().unwrap());
    code.collect::<Vec<_>>().join("\n")
}

impl Crate {
    /// The crate whose sources are in `folder`. Code that is only compiled for tests may look anywhere: leave out its
    /// modules.
    pub fn read(folder: &Path, name: &'static str, left_out: &[&str]) -> Self {
        let rust = files(folder).into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
        let modules = rust.filter_map(|path| {
            let inside = path.strip_prefix(folder).unwrap().with_extension("");
            let mut module: Module = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if matches!(module.last().unwrap().as_str(), "mod" | "lib") {
                module.pop();
            }
            let is_left_out = module.first().is_some_and(|name| left_out.contains(&name.as_str()));
            (!is_left_out).then(|| (module, Source::read(path)))
        });
        Self { files: modules.collect(), name }
    }

    pub fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (module, source) in &self.files {
            let resolve = |path: &[String]| self.resolve(module, path, 0);
            // A folder that hands on what one of its files defines does not import it.
            let is_import = |used: &Use, from: &Module| !(used.is_reexport && from.starts_with(module));
            let used = source.uses.iter().filter_map(|used| resolve(&used.path).filter(|from| is_import(used, from)));
            let named = paths_in_code(&source.code).into_iter().filter_map(|path| resolve(&path));
            let others = used.chain(named).filter(|from| from != module).map(|from| self.files[&from].path.clone());
            imports.insert(source.path.clone(), others.collect());
        }
        imports
    }

    /// The module in which an item is defined; nothing for what is not of this crate. `hops` ends a circle of re-exports.
    fn resolve(&self, from: &Module, path: &[String], hops: usize) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let (mut module, rest) = match first.as_str() {
            "crate" => (Module::new(), rest),
            name if name == self.name => (Module::new(), rest),
            "self" => (from.clone(), rest),
            "super" => {
                let supers = path.iter().take_while(|part| *part == "super").count();
                (from[..from.len().checked_sub(supers)?].to_vec(), &path[supers..])
            }
            name => {
                // A child, or something that a `use` here has given this name.
                let child = [&from[..], &[name.to_owned()]].concat();
                if self.files.contains_key(&child) {
                    (child, rest)
                } else {
                    let used = self.files[from].uses.iter().find(|used| used.name == name)?;
                    let whole = [&used.path[..], rest].concat();
                    let is_itself = used.path.first().is_some_and(|first| first == name);
                    return if is_itself || hops > 8 { None } else { self.resolve(from, &whole, hops + 1) };
                }
            }
        };
        for (at, part) in rest.iter().enumerate() {
            let child = [&module[..], std::slice::from_ref(part)].concat();
            if self.files.contains_key(&child) {
                module = child;
                continue;
            }
            let reexported = self.files[&module].uses.iter().find(|used| used.is_reexport && used.name == *part);
            return match reexported {
                Some(used) if hops < 8 => {
                    self.resolve(&module, &[&used.path[..], &rest[at + 1..]].concat(), hops + 1).or(Some(module))
                }
                _ => Some(module),
            };
        }
        // The path names a module and no item. Where that is a folder, the paths that begin with its name say which of its
        // files define what is used.
        let is_folder = self.files[&module].path.ends_with("mod.rs");
        (!is_folder).then_some(module)
    }
}

impl Source {
    fn read(path: PathBuf) -> Self {
        let (mut code, mut uses) = (String::new(), Vec::new());
        for statement in self::code(&path).split(';') {
            // An attribute, or the end of what came before, may precede a `use`.
            let begin = word(statement, "use").unwrap_or(statement.len());
            let (before, tree) = statement.split_at(begin);
            let line = before.rsplit('\n').next().unwrap().trim();
            if tree.is_empty() || !(line.is_empty() || line.starts_with("pub")) {
                code.extend([statement, ";"]);
                continue;
            }
            code.push_str(before);
            for (path, name) in expand(tree["use".len()..].trim()) {
                uses.push(Use { name, path, is_reexport: line.starts_with("pub") });
            }
        }
        Self { path, code, uses }
    }
}

/// Where a word stands alone for the first time.
fn word(text: &str, word: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .map(|(at, _)| at)
        .find(|at| !text[..*at].ends_with(is_part) && text[at + word.len()..].starts_with(char::is_whitespace))
}

/// The paths of a `use`, with the name that each has afterwards.
fn expand(tree: &str) -> Vec<(Vec<String>, String)> {
    let (before, group) = match tree.find('{') {
        None => {
            let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
            let parts: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
            let name = if name.is_empty() { parts.last().unwrap().clone() } else { name.trim().to_owned() };
            return vec![(parts, name)];
        }
        Some(at) => (&tree[..at], &tree[at + 1..tree.rfind('}').unwrap_or(tree.len())]),
    };
    let prefix: Vec<String> =
        before.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    let (mut paths, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = group[start..at].trim();
                start = at + 1;
                for (path, name) in if part.is_empty() { Vec::new() } else { expand(part) } {
                    let is_self = path == ["self"];
                    let name = if is_self && name == "self" { prefix.last().unwrap().clone() } else { name };
                    let path = if is_self { prefix.clone() } else { [&prefix[..], &path[..]].concat() };
                    paths.push((path, name));
                }
            }
            _ => {}
        }
    }
    paths
}

/// Paths of two parts or more that stand in code.
fn paths_in_code(code: &str) -> Vec<Vec<String>> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c: char| !is_part(c)).filter(|word| word.contains("::"));
    words.map(|word| word.split("::").map(str::to_owned).filter(|part| !part.is_empty()).collect()).collect()
}

/// Groups of files that import each other, each in a circle.
pub fn circles(imports: &Imports) -> Vec<BTreeSet<PathBuf>> {
    let reached: BTreeMap<_, _> = imports.keys().map(|file| (file, reachable(imports, file))).collect();
    let mut found = Vec::new();
    for (file, others) in &reached {
        let circle: BTreeSet<PathBuf> = others
            .iter()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(*file)))
            .cloned()
            .collect();
        if !circle.is_empty() && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

fn reachable(imports: &Imports, file: &Path) -> BTreeSet<PathBuf> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![file.to_owned()]);
    while let Some(file) = next.pop() {
        for other in imports.get(&file).into_iter().flatten() {
            if reached.insert(other.clone()) {
                next.push(other.clone());
            }
        }
    }
    reached
}
