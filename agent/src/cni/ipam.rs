//! Addresses come from another plug-in, executed as the specification says: same environment, same document, found in `CNI_PATH`.
//!
//! A delegate may speak an older version than the runtime asked us for: it is asked once what it speaks, and gets the newest version
//! that both know, never one newer than the runtime's.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::types::{CniResult, Environment, Failure, NetConf, VERSIONS, code};

/// The delegated plug-in, found and asked for its versions.
pub struct Ipam<'a> {
    binary: PathBuf,
    version: &'static str,
    environment: &'a Environment,
    conf: &'a NetConf,
}

impl<'a> Ipam<'a> {
    /// Finds the delegate that `conf` names.
    pub fn find(environment: &'a Environment, conf: &'a NetConf) -> Result<Self, Failure> {
        let directories = environment.path()?;
        let executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        let binary = directories.iter().map(|d| d.join(&conf.ipam)).find(executable).ok_or_else(|| {
            let looked: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
            Failure::new(
                code::IPAM,
                format!("the IPAM plug-in {:?} was not found", conf.ipam),
                format!("install it in one of {} (package containernetworking-plugins)", looked.join(", ")),
            )
        })?;
        let mut ipam = Self { binary, version: VERSIONS[0], environment, conf };
        let answer = ipam.execute("VERSION", &json!({ "cniVersion": conf.version }))?;
        let spoken: Vec<&str> =
            answer["supportedVersions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ipam.version = VERSIONS
            .iter()
            .rev()
            .skip_while(|v| **v != conf.version)
            .find(|v| spoken.contains(*v))
            .ok_or_else(|| {
                Failure::new(
                    code::VERSION,
                    format!("the IPAM plug-in {:?} speaks none of our versions", conf.ipam),
                    format!("it speaks {}; we speak {}", spoken.join(", "), VERSIONS.join(", ")),
                )
            })?;
        Ok(ipam)
    }

    /// Returns whether the delegate knows GC and STATUS.
    pub fn knows_gc(&self) -> bool {
        self.version == "1.1.0"
    }

    /// Asks for addresses.
    pub fn add(&self) -> Result<CniResult, Failure> {
        CniResult::parse(self.command("ADD", None)?)
    }

    /// Gives the addresses back; idempotent.
    pub fn del(&self) -> Result<(), Failure> {
        self.command("DEL", None).map(drop)
    }

    /// Asks whether the addresses are still ours.
    pub fn check(&self) -> Result<(), Failure> {
        self.command("CHECK", self.conf.document.get("prevResult")).map(drop)
    }

    /// Has the delegate release what the document does not list.
    pub fn gc(&self) -> Result<(), Failure> {
        self.command("GC", None).map(drop)
    }

    /// Asks whether the delegate can serve ADD.
    pub fn status(&self) -> Result<(), Failure> {
        self.command("STATUS", None).map(drop)
    }

    fn command(&self, command: &str, previous: Option<&Value>) -> Result<Value, Failure> {
        let mut document = self.conf.document.clone();
        document.insert("cniVersion".into(), json!(self.version));
        match previous {
            Some(previous) => {
                let mut previous = previous.clone();
                previous["cniVersion"] = json!(self.version);
                document.insert("prevResult".into(), previous);
            }
            None => drop(document.remove("prevResult")),
        }
        self.execute(command, &Value::Object(document))
    }

    fn execute(&self, command: &str, document: &Value) -> Result<Value, Failure> {
        let failed = |e: std::io::Error| {
            Failure::new(
                code::IPAM,
                format!("cannot execute {} {command}", self.binary.display()),
                e.to_string(),
            )
        };
        let mut child = Command::new(&self.binary)
            .envs(self.environment.for_delegate(command))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A delegate that answers without reading closes the pipe; its exit status tells whether that was wrong.
            let _ = stdin.write_all(document.to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        let answer: Value = if output.stdout.trim_ascii().is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
        };
        if output.status.success() {
            return Ok(answer);
        }
        let reported = answer["code"].as_u64().and_then(|c| u32::try_from(c).ok()).filter(|c| *c != 0);
        let message = answer["msg"].as_str().unwrap_or("no reason given");
        let details = answer["details"].as_str().unwrap_or_default();
        Err(Failure::new(
            reported.unwrap_or(code::IPAM),
            format!("the IPAM plug-in {:?} failed at {command}", self.conf.ipam),
            if details.is_empty() {
                format!("{message} ({})", output.status)
            } else {
                format!("{message}: {details}")
            },
        ))
    }
}
