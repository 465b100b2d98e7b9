//! The image, where no engine builds it: the file that describes it is judged line by line, and what it holds is put together by hand and
//! started with nothing else around it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The instructions of the Dockerfile: word and rest, continued lines joined, comments left out.
fn instructions() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    let text: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| line.to_owned() + "\n")
        .collect();
    let joined = text.replace("\\\n", " ");
    let split = |line: &str| {
        line.trim().split_once(' ').map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()))
    };
    joined.lines().filter_map(split).collect()
}

/// The instructions of each stage, the first of each being FROM.
fn stages() -> Vec<Vec<(String, String)>> {
    let mut stages: Vec<Vec<(String, String)>> = Vec::new();
    for instruction in instructions() {
        if instruction.0 == "FROM" {
            stages.push(Vec::new());
        }
        stages.last_mut().expect("the first instruction is FROM").push(instruction);
    }
    stages
}

#[test]
fn the_dockerfile_is_one_that_builds_the_same_twice_and_ships_little() {
    let known = ["FROM", "SHELL", "RUN", "WORKDIR", "COPY", "ENV", "LABEL", "USER", "ENTRYPOINT", "CMD"];
    for (word, rest) in instructions() {
        assert!(known.contains(&&*word), "{word} {rest}");
        match &*word {
            "FROM" if rest != "scratch" => {
                let image = rest.split_whitespace().next().unwrap();
                let (_, tag) = image.split_once(':').expect("a tag");
                assert!(tag != "latest" && tag.contains('.'), "{image}: a tag that stays what it is");
            }
            "RUN" => {
                assert!(!rest.contains("sudo") && !rest.contains("apt-get upgrade"), "{rest}");
                if rest.contains("apt-get install") {
                    assert!(
                        rest.contains("--no-install-recommends") && rest.contains("apt-get install -y"),
                        "{rest}"
                    );
                    assert!(
                        rest.contains("apt-get update") && rest.contains("rm -rf /var/lib/apt/lists"),
                        "{rest}"
                    );
                }
                if rest.contains("curl -") {
                    assert!(rest.contains("--proto '=https'"), "{rest}");
                }
            }
            "ENTRYPOINT" | "CMD" => {
                assert!(rest.starts_with('[') && rest.ends_with(']'), "{word} {rest}: there is no shell")
            }
            "COPY" => assert!(!rest.contains("--chmod=777")),
            _ => {}
        }
    }
    let stages = stages();
    let last = stages.last().unwrap();
    let words: Vec<&str> = last.iter().map(|(word, _)| word.as_str()).collect();
    assert_eq!(last[0].1, "scratch", "the last stage begins with nothing");
    assert!(!words.contains(&"RUN"), "nothing can run there");
    let copies: Vec<&str> =
        last.iter().filter(|(word, _)| word == "COPY").map(|(_, rest)| rest.as_str()).collect();
    assert_eq!(copies, ["--from=build /image/margay /margay"], "one file");
    assert!(last.contains(&("ENTRYPOINT".to_owned(), r#"["/margay"]"#.to_owned())));
}

/// What the build installs is what the setup of a working copy installs to build, so neither is forgotten.
#[test]
fn the_build_stage_has_what_the_setup_has() {
    let setup = fs::read_to_string(root().join("scripts/setup")).unwrap();
    let line = setup
        .lines()
        .find(|line| line.trim_start().starts_with("gcc make"))
        .expect("the list of what every build needs");
    let builds = instructions().into_iter().find(|(_, rest)| rest.contains("apt-get install")).unwrap().1;
    let installed: BTreeSet<&str> = builds.split_whitespace().collect();
    let missing: Vec<&str> = line.split_whitespace().filter(|package| !installed.contains(package)).collect();
    assert!(missing.is_empty(), "deploy/Dockerfile does not install {missing:?}");
    // Every member of the workspace has to be there, or cargo refuses the manifest.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = manifest
        .lines()
        .skip_while(|line| !line.starts_with("members"))
        .skip(1)
        .take_while(|line| line.contains('"'));
    let sent = fs::read_to_string(root().join(".dockerignore")).unwrap();
    for member in members {
        let folder = member.trim().trim_matches([',', '"']).split('/').next().unwrap();
        assert!(sent.contains(&format!("!{folder}\n")), ".dockerignore keeps {folder} from the build");
    }
}

/// The program, and the libraries that the loader says it needs (none, in the image), alone in a folder that is its whole world.
#[test]
fn the_program_starts_where_nothing_else_is() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED the_program_starts_where_nothing_else_is: needs root, to change the root folder");
        return;
    }
    let world = tempfile::tempdir().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_margay"));
    fs::copy(binary, world.path().join("margay")).unwrap();
    let libraries = Command::new("ldd").arg(binary).output().unwrap();
    let listed = String::from_utf8_lossy(&libraries.stdout).into_owned();
    assert!(!listed.contains("not found"), "{listed}");
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let inside = world.path().join(library.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(library, inside).unwrap();
    }
    fs::create_dir(world.path().join("bin")).unwrap();
    let alone = |arguments: &[&str]| {
        let output = Command::new("/usr/sbin/chroot")
            .arg(world.path())
            .arg("/margay")
            .args(arguments)
            .env_clear()
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(alone(&["--version"]).starts_with("margay "));
    let printed = alone(&["install", "--dry-run", "--only", "agent", "--image", "r.example/margay:7"]);
    assert!(printed.contains("kind: DaemonSet") && printed.contains("r.example/margay:7"));
    assert!(alone(&["uninstall", "--help"]).contains("--cni-conf-dir"));
}
