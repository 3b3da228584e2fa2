//! The files of a crate that are compiled: its root, and what `mod` lines name from there. A file that nobody names is
//! no test, whatever it says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// A source file.
#[derive(Debug)]
pub(super) struct Source {
    /// From the root of the workspace.
    pub(super) path: String,
    pub(super) text: String,
}

/// All files of these crates, sorted.
pub(super) fn files(workspace: &Path, roots: &[&str]) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    for root in roots {
        follow(workspace, Path::new(root), true, &mut files)?;
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

fn follow(workspace: &Path, path: &Path, is_root: bool, files: &mut Vec<Source>) -> Result<()> {
    let text = fs::read_to_string(workspace.join(path)).with_context(|| format!("read {}", path.display()))?;
    let directory = if is_root || path.ends_with("mod.rs") { path.with_file_name("") } else { path.with_extension("") };
    for module in modules(&text) {
        follow(workspace, &file(workspace, &directory, module)?, false, files)?;
    }
    files.push(Source { path: path.to_string_lossy().into_owned(), text });
    Ok(())
}

/// The file of a module that a file with this directory names.
fn file(workspace: &Path, directory: &Path, module: &str) -> Result<PathBuf> {
    for candidate in [directory.join(format!("{module}.rs")), directory.join(module).join("mod.rs")] {
        if workspace.join(&candidate).exists() {
            return Ok(candidate);
        }
    }
    bail!("{} has no file of the module {module}", directory.display())
}

/// The modules in files of their own.
fn modules(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let line = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub ")).unwrap_or(line);
        let line = line.strip_prefix("pub(super) ").unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_named_are_read() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let write = |path: &str, text: &str| -> Result<()> {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            Ok(fs::write(path, text)?)
        };
        write("main.rs", "pub(crate) mod one;\nmod two;\nmod inline {\n    fn x() {}\n}\n// mod none;\n")?;
        write("one.rs", "mod inner;\n")?;
        write("one/inner.rs", "")?;
        write("two/mod.rs", "pub mod deep;\n")?;
        write("two/deep.rs", "")?;
        write("orphan.rs", "")?;
        let paths = |root: &str| files(directory.path(), &[root]).map(|all| all.into_iter().map(|file| file.path));
        let found: Vec<String> = paths("main.rs")?.collect();
        assert_eq!(found, ["main.rs", "one.rs", "one/inner.rs", "two/deep.rs", "two/mod.rs"]);
        write("lost.rs", "mod nowhere;\n")?;
        assert!(files(directory.path(), &["lost.rs"]).is_err());
        Ok(())
    }
}
