//! How long things may get before they are two things.

use super::{Finding, rust_source::RustSource, tree::Tree};

const MAX_FILE_LINES: usize = 700;
const MAX_FUNCTION_LINES: usize = 100;

/// Rust files of more than 700 lines.
pub fn files(tree: &Tree) -> Vec<Finding> {
    let sizes = tree.rust().map(|file| (file, file.text.lines().count()));
    let long = sizes.filter(|&(_, n_lines)| n_lines > MAX_FILE_LINES);
    long.map(|(file, n_lines)| {
        Finding::new(&file.path, 0, format!("{n_lines} lines: is it one thing? (aim for 500)"))
    })
    .collect()
}

/// Functions of more than 100 lines.
pub fn functions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for (name, line, n_lines) in RustSource::parse(&file.text).functions() {
            if n_lines > MAX_FUNCTION_LINES {
                let message = format!("`{name}` has {n_lines} lines (aim for 70)");
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_and_functions_are_found() {
        let long = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(699));
        let short = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(98));
        let tree = Tree::of(&[("crates/slmc-x/src/lib.rs", &long), ("crates/slmc-y/src/lib.rs", &short)]);
        for findings in [files(&tree), functions(&tree)] {
            assert_eq!(findings.len(), 1);
            assert_eq!(findings[0].place, "crates/slmc-x/src/lib.rs");
        }
    }
}
