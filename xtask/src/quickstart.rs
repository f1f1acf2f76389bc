//! `cargo xtask quickstart`: runs what README.md tells a newcomer to type, so that it can't go stale.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::repo;

/// Prints the commands.
pub fn print() -> Result<()> {
    print!("{}", commands(&readme()?)?);
    Ok(())
}

/// Runs the commands in one shell, stopping at the first that fails.
pub fn run() -> Result<()> {
    let script = commands(&readme()?)?;
    let mut bash = Command::new("bash");
    repo::run(bash.current_dir(repo::root()).args(["-euxo", "pipefail", "-c", &script]))
}

fn readme() -> Result<String> {
    let path = repo::root().join("README.md");
    std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
}

/// The `sh` blocks under the heading `## Quick start`, in order.
fn commands(readme: &str) -> Result<String> {
    let mut script = String::new();
    let (mut in_section, mut in_block) = (false, false);
    for line in readme.lines() {
        if in_block && line.starts_with("```") {
            in_block = false;
        } else if in_block {
            script.push_str(line);
            script.push('\n');
        } else if line.starts_with("## ") {
            in_section = line.eq_ignore_ascii_case("## quick start");
        } else if in_section {
            in_block = line == "```sh";
        }
    }
    if script.is_empty() {
        bail!("README.md has no ```sh block under `## Quick start`");
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shell_blocks_of_the_section_are_taken() {
        let readme = "\
# x
```sh
no
```
## Quick start
Type:
```sh
one   # ## not a heading
two
```
It prints
```text
no
```
```sh
three
```
## More
```sh
no
```
";
        assert_eq!(commands(readme).unwrap(), "one   # ## not a heading\ntwo\nthree\n");
    }

    #[test]
    fn a_readme_without_a_quick_start_is_refused() {
        assert!(commands("# x\n## Quick start\n```text\nno\n```\n").is_err());
    }
}
