//! `cargo xtask test --neon`: the tests of slmc-kernels built for aarch64 and run on CPUs that qemu emulates.
//!
//! No target of rustup is needed. Debian's rustc-web brings a compiler with a standard library for aarch64; its packages are
//! unpacked under target/neon, not installed, together with the libraries that the compiler itself wants. Cargo is the one
//! that runs this; linker, C library and emulator are the system's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::repo;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// Where Debian's cross packages have the C library.
const SYSTEM: &str = "/usr/aarch64-linux-gnu";

/// Debian's release, and the keys that its index is signed with.
const RELEASE: &str = "trixie";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package whose dependencies are wanted too: the compiler's own library, LLVM, and a C library as new as they want.
const WITH_DEPENDENCIES: &str = "libstd-rust-web-dev";
/// Packages whose dependencies are not: a C compiler, and a compiler's library for aarch64.
const ALONE: [&str; 2] = ["rustc-web", "libstd-rust-web-dev:arm64"];

/// Starts the compiler with the C library that was unpacked beside it.
const RUSTC: &str = r#"#!/bin/sh
root=$(dirname "$0")/usr
exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/lib/x86_64-linux-gnu" "$root/bin/rustc" --sysroot "$root" "$@"
"#;

/// An emulated CPU, the instruction set that must be found on it, and the tests that it runs: all, or those so called.
struct Cpu {
    name: &'static str,
    isa: &'static str,
    tests: &'static [&'static str],
}

const CPUS: [Cpu; 2] = [
    Cpu { name: "max", isa: "neondot", tests: &[] },
    // NEON without dot products: what uses the portable kernels there.
    Cpu { name: "cortex-a53", isa: "portable", tests: &["packed::", "cached::"] },
];

pub fn run() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "the compiler that is fetched runs on x86-64 Linux only; on ARM, `cargo test -p slmc-kernels` does it"
        );
    }
    system_has_what_is_needed()?;
    let folder =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo::root().join("target"), PathBuf::from);
    let folder = repo::root().join(folder).join("neon");
    let rustc = toolchain(&folder)?;
    for cpu in &CPUS {
        println!("neon: on an emulated {}, where {} must be found", cpu.name, cpu.isa);
        repo::run(&mut tests_on(cpu, &rustc, &folder.join("build")))?;
    }
    Ok(())
}

fn tests_on(cpu: &Cpu, rustc: &Path, build: &Path) -> Command {
    let mut cargo = repo::cargo();
    cargo.args(["test", "--locked", "--release", "-p", "slmc-kernels", "--lib", "--target", TARGET]);
    cargo.arg("--target-dir").arg(build).arg("--").args(cpu.tests);
    let variable = |what: &str| format!("CARGO_TARGET_{}_{what}", TARGET.to_uppercase().replace('-', "_"));
    cargo.env("RUSTC", rustc).env("RUSTC_WRAPPER", "").env_remove("RUSTFLAGS");
    cargo.env(variable("LINKER"), LINKER);
    cargo.env(variable("RUNNER"), format!("{EMULATOR} -cpu {} -L {SYSTEM}", cpu.name));
    cargo.env("SLMC_TEST_ISA", cpu.isa);
    cargo
}

fn system_has_what_is_needed() -> Result<()> {
    let starts = |program: &str| repo::output(Command::new(program).arg("--version")).is_ok();
    let needs = [
        ("apt", starts("apt-get")),
        ("dpkg", starts("dpkg")),
        ("debian-archive-keyring", Path::new(KEYS).is_file()),
        ("gcc-aarch64-linux-gnu", starts(LINKER)),
        ("libc6-dev-arm64-cross", Path::new(SYSTEM).join("lib/libc.so").is_file()),
        ("qemu-user", starts(EMULATOR)),
    ];
    let missing: Vec<&str> =
        needs.into_iter().filter(|(_, there)| !there).map(|(package, _)| package).collect();
    if !missing.is_empty() {
        let missing = missing.join(" ");
        bail!("tests for aarch64 need packages of Debian that are not here: apt-get install {missing}");
    }
    Ok(())
}

/// The compiler, fetched and unpacked unless it is there.
fn toolchain(folder: &Path) -> Result<PathBuf> {
    let toolchain = folder.join("toolchain");
    let rustc = toolchain.join("rustc");
    if !rustc.is_file() {
        let part = folder.join("toolchain.part");
        if part.exists() {
            fs::remove_dir_all(&part).with_context(|| format!("can't remove {}", part.display()))?;
        }
        println!(
            "neon: {WITH_DEPENDENCIES} with what it needs and {} of Debian {RELEASE}, about 140 MB, into {}",
            ALONE.join(" "),
            toolchain.display()
        );
        unpack(&part).with_context(|| {
            format!("no compiler for aarch64: the packages come from deb.debian.org, into {}", part.display())
        })?;
        fs::rename(&part, &toolchain)?;
    }
    // Fails here, not in the middle of a build, when something that it needs is missing.
    print!("neon: {}", repo::output(Command::new(&rustc).arg("--version"))?);
    Ok(rustc)
}

/// Fetches the packages and unpacks them into a folder, with the script that starts the compiler.
fn unpack(folder: &Path) -> Result<()> {
    let apt = folder.join("apt");
    for part in ["empty", "lists/partial", "archives/partial"] {
        fs::create_dir_all(apt.join(part))?;
    }
    fs::write(apt.join("status"), "")?;
    fs::write(
        apt.join("sources.list"),
        format!(
            "deb [arch=amd64,arm64 target=Packages signed-by={KEYS}] http://deb.debian.org/debian {RELEASE} main\n"
        ),
    )?;
    fs::write(apt.join("apt.conf"), apt_settings(&apt))?;
    let apt_get = || {
        let mut apt_get = Command::new("apt-get");
        apt_get.env("APT_CONFIG", apt.join("apt.conf")).current_dir(apt.join("archives"));
        apt_get
    };
    repo::run(apt_get().args(["-qq", "--error-on=any", "update"]))?;
    repo::run(apt_get().args(["-qq", "--yes", "--download-only", "install", WITH_DEPENDENCIES]))?;
    repo::run(apt_get().args(["-qq", "download"]).args(ALONE))?;

    let mut n_bytes = 0;
    for entry in fs::read_dir(apt.join("archives"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            n_bytes += fs::metadata(&path)?.len();
            repo::output(Command::new("dpkg").arg("--extract").arg(&path).arg(folder))?;
            println!("neon: {}", path.file_name().unwrap_or_default().to_string_lossy());
        }
    }
    println!("neon: {} MB of packages", n_bytes / 1_000_000);
    fs::remove_dir_all(apt)?;
    let rustc = folder.join("rustc");
    fs::write(&rustc, RUSTC)?;
    repo::run(Command::new("chmod").arg("+x").arg(rustc))
}

/// Settings under which apt keeps to a folder: nothing of the system's package lists is read or changed, and signatures are
/// checked.
fn apt_settings(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::State::extended_states "{folder}/extended_states";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Log "{folder}";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "{folder}/empty";
Dir::Etc::preferences "{folder}/preferences";
Dir::Etc::preferencesparts "{folder}/empty";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulated_cpu_is_told_apart_and_the_rest_stays() {
        let environment = |cpu: &Cpu| -> Vec<(String, String)> {
            let command = tests_on(cpu, Path::new("/r/rustc"), Path::new("/b"));
            let text = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
            command.get_envs().filter_map(|(key, value)| Some((text(key), text(value?)))).collect()
        };
        let [max, old] = CPUS.each_ref().map(environment);
        let different = |(a, b): &(&(String, String), &(String, String))| a != b;
        let names: Vec<&str> = max.iter().zip(&old).filter(different).map(|(a, _)| a.0.as_str()).collect();
        // What is built is the same, or it would be built twice.
        assert_eq!(names, ["CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "SLMC_TEST_ISA"]);
        assert!(max.contains(&("SLMC_TEST_ISA".to_owned(), "neondot".to_owned())));
    }
}
