//! The vocabulary of the CNI specification: environment, network configuration, result, error.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use margay_wire::MacAddr;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::endpoints::{AttachmentKey, PodRef};

/// Versions of the specification we speak, oldest first.
pub const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// Where the agent listens unless the configuration says otherwise.
const AGENT_SOCKET: &str = "/run/margay/agent.sock";

/// How long ADD waits for the pod's policy to be in force unless the configuration says otherwise.
const ATTACH_SECONDS: u64 = 10;

/// Error codes of the specification (section "Error"), and ours from 100 on.
pub mod code {
    /// Incompatible CNI version.
    pub const VERSION: u32 = 1;
    /// The container is unknown or does not exist.
    pub const CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO: u32 = 5;
    /// The configuration could not be decoded.
    pub const DECODE: u32 = 6;
    /// The network configuration is wrong.
    pub const CONFIG: u32 = 7;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: the plug-in cannot serve ADD.
    pub const UNAVAILABLE: u32 = 50;
    /// The kernel refused.
    pub const KERNEL: u32 = 100;
    /// The delegated IPAM plug-in could not be executed or gave nonsense.
    pub const IPAM: u32 = 101;
    /// CHECK: the attachment is not as ADD left it.
    pub const DIFFERS: u32 = 102;
    /// ADD: the attachment exists already.
    pub const EXISTS: u32 = 103;
    /// The agent refused for good.
    pub const REFUSED: u32 = 104;
}

/// An error in the specification's form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct Failure {
    /// Its code; see [`code`].
    pub code: u32,
    /// What went wrong, short.
    pub message: String,
    /// Why, and what to do.
    pub details: String,
}

impl Failure {
    /// An error with `code`.
    pub fn new(code: u32, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// Returns the error as the runtime wants it, under the version it asked for.
    pub fn to_json(&self, version: Option<&str>) -> Value {
        json!({
            "cniVersion": version.unwrap_or(VERSIONS[VERSIONS.len() - 1]),
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        })
    }
}

impl From<crate::net::NetError> for Failure {
    fn from(error: crate::net::NetError) -> Self {
        Self::new(code::KERNEL, "the kernel refused", error.to_string())
    }
}

/// The answer to VERSION.
pub fn version_answer(version: Option<&str>) -> Value {
    json!({ "cniVersion": version.unwrap_or(VERSIONS[VERSIONS.len() - 1]), "supportedVersions": VERSIONS })
}

/// The parameters that come in environment variables.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Takes the process's own.
    pub fn of_process() -> Self {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        Self(
            std::env::vars_os()
                .map(|(k, v)| (text(k), text(v)))
                .filter(|(k, _)| k.starts_with("CNI_"))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    fn required(&self, name: &str) -> Result<&str, Failure> {
        self.get(name).ok_or_else(|| {
            Failure::new(code::ENVIRONMENT, format!("{name} is missing"), "the container runtime must set it")
        })
    }

    /// Returns `CNI_COMMAND`.
    pub fn command(&self) -> Result<&str, Failure> {
        self.required("CNI_COMMAND")
    }

    /// Returns `CNI_CONTAINERID` and `CNI_IFNAME`, both checked as the specification asks.
    pub fn key(&self) -> Result<AttachmentKey, Failure> {
        let (id, ifname) = (self.required("CNI_CONTAINERID")?, self.required("CNI_IFNAME")?);
        let wrong =
            |what: &str, why: &str| Failure::new(code::ENVIRONMENT, format!("{what} is not valid"), why);
        if !id.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !id.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        {
            return Err(wrong(
                "CNI_CONTAINERID",
                "it starts with a letter or digit and goes on with those, '_', '.', '-'",
            ));
        }
        if ifname.len() > 15
            || ifname == "."
            || ifname == ".."
            || ifname.chars().any(|c| c.is_whitespace() || "/:".contains(c))
        {
            return Err(wrong(
                "CNI_IFNAME",
                "an interface name has at most 15 characters, no '/', ':' or space",
            ));
        }
        Ok(AttachmentKey { container_id: id.to_owned(), ifname: ifname.to_owned() })
    }

    /// Returns `CNI_NETNS`, where it is required.
    pub fn netns(&self) -> Result<&Path, Failure> {
        self.required("CNI_NETNS").map(Path::new)
    }

    /// Returns the directories of `CNI_PATH`.
    pub fn path(&self) -> Result<Vec<PathBuf>, Failure> {
        Ok(std::env::split_paths(self.required("CNI_PATH")?).collect())
    }

    /// Returns the pod that `CNI_ARGS` names.
    pub fn pod(&self) -> Result<PodRef, Failure> {
        let args: BTreeMap<&str, &str> =
            self.get("CNI_ARGS").unwrap_or("").split(';').filter_map(|pair| pair.split_once('=')).collect();
        let text = |name: &str| args.get(name).filter(|v| !v.is_empty()).map(|v| (*v).to_owned());
        let required = |name: &str| {
            text(name).ok_or_else(|| {
                Failure::new(
                    code::ENVIRONMENT,
                    format!("CNI_ARGS has no {name}"),
                    "policy is judged by Pod: the runtime must pass K8S_POD_NAMESPACE and K8S_POD_NAME",
                )
            })
        };
        Ok(PodRef {
            namespace: required("K8S_POD_NAMESPACE")?,
            name: required("K8S_POD_NAME")?,
            uid: text("K8S_POD_UID"),
        })
    }

    /// Returns the variables for a delegate that is to do `command`.
    pub fn for_delegate(&self, command: &str) -> BTreeMap<String, String> {
        let mut variables = self.0.clone();
        variables.insert("CNI_COMMAND".into(), command.into());
        variables
    }

    /// Returns the same environment speaking of another attachment, without a namespace.
    pub fn about(&self, key: &AttachmentKey) -> Self {
        let mut variables = self.0.clone();
        variables.insert("CNI_CONTAINERID".into(), key.container_id.clone());
        variables.insert("CNI_IFNAME".into(), key.ifname.clone());
        variables.remove("CNI_NETNS");
        variables.remove("CNI_ARGS");
        Self(variables)
    }
}

/// The network configuration, checked.
#[derive(Clone, Debug)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: String,
    /// `name`.
    pub name: String,
    /// `agentSocket`.
    pub agent_socket: PathBuf,
    /// `mtu`; `None` asks the agent.
    pub mtu: Option<u32>,
    /// `attachTimeoutSeconds`.
    pub attach_timeout: Duration,
    /// `ipam.type`.
    pub ipam: String,
    /// `prevResult`, as it came: only CHECK reads it, so that a strange one never stands in the way of DEL.
    pub previous: Option<Value>,
    /// `cni.dev/valid-attachments`, for GC.
    pub valid: Option<Vec<AttachmentKey>>,
    /// The whole document: what the delegate gets.
    pub document: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConf {
    cni_version: Option<String>,
    name: Option<String>,
    agent_socket: Option<PathBuf>,
    #[serde(default)]
    mtu: u32,
    attach_timeout_seconds: Option<u64>,
    ipam: Option<RawIpam>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<RawAttachment>>,
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<RawAttachment>>,
}

#[derive(Deserialize)]
struct RawIpam {
    r#type: Option<String>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl NetConf {
    /// Returns the `cniVersion` of a document that may be anything, to answer under it.
    pub fn version_of(text: &[u8]) -> Option<String> {
        let document: Value = serde_json::from_slice(text).ok()?;
        let version = document.get("cniVersion")?.as_str()?;
        VERSIONS.contains(&version).then(|| version.to_owned())
    }

    /// Decodes and checks a network configuration.
    pub fn parse(text: &[u8]) -> Result<Self, Failure> {
        let undecodable = |e: serde_json::Error| {
            Failure::new(code::DECODE, "the network configuration cannot be decoded", e.to_string())
        };
        let document: serde_json::Map<String, Value> = serde_json::from_slice(text).map_err(undecodable)?;
        let raw: RawConf = serde_json::from_value(Value::Object(document.clone())).map_err(undecodable)?;
        let wrong = |what: &str, how: &str| {
            Failure::new(code::CONFIG, format!("{what} in the network configuration"), how)
        };
        let version = raw.cni_version.unwrap_or_else(|| "0.1.0".to_owned());
        if !VERSIONS.contains(&version.as_str()) {
            return Err(Failure::new(
                code::VERSION,
                format!("CNI version {version} is not supported"),
                format!("set cniVersion to one of {}", VERSIONS.join(", ")),
            ));
        }
        let name = raw
            .name
            .filter(|n| !n.is_empty())
            .ok_or_else(|| wrong("no name", "every CNI network has one"))?;
        if name.len() > 128
            || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        {
            return Err(wrong(
                "bad name",
                "letters, digits, '_', '.', '-', at most 128, the first a letter or digit",
            ));
        }
        let ipam = raw.ipam.and_then(|ipam| ipam.r#type).filter(|t| !t.is_empty()).ok_or_else(|| {
            wrong("no ipam.type", "name the plug-in that gives out addresses, such as host-local")
        })?;
        if ipam.contains('/') {
            return Err(wrong("ipam.type with a path", "it is looked up in CNI_PATH: give its bare name"));
        }
        if raw.mtu != 0 && !(1280..=65_535).contains(&raw.mtu) {
            return Err(wrong(
                "mtu out of range",
                "0 asks the agent; else 1280 (the least for IPv6) to 65535",
            ));
        }
        let seconds = raw.attach_timeout_seconds.unwrap_or(ATTACH_SECONDS);
        if !(1..=110).contains(&seconds) {
            return Err(wrong("attachTimeoutSeconds out of range", "1 to 110"));
        }
        let keys = |list: Vec<RawAttachment>| {
            list.into_iter()
                .map(|a| AttachmentKey { container_id: a.container_id, ifname: a.ifname })
                .collect()
        };
        Ok(Self {
            version,
            name,
            agent_socket: raw.agent_socket.unwrap_or_else(|| PathBuf::from(AGENT_SOCKET)),
            mtu: (raw.mtu != 0).then_some(raw.mtu),
            attach_timeout: Duration::from_secs(seconds),
            ipam,
            previous: raw.prev_result,
            valid: raw.valid.or(raw.attachments).map(keys),
            document,
        })
    }
}

/// What we need of another plug-in's result. Routes are not among it: whatever the delegate asks for leads to the one gateway.
#[derive(Clone, Debug, Default)]
pub struct CniResult {
    /// Addresses, with the prefix length that the delegate names.
    pub ips: Vec<IpNet>,
    /// DNS settings, passed on as they are.
    pub dns: Option<Value>,
}

impl CniResult {
    /// Reads a result of any version we speak.
    pub fn parse(value: Value) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            ips: Vec<RawIp>,
            dns: Option<Value>,
        }
        #[derive(Deserialize)]
        struct RawIp {
            address: IpNet,
        }
        let raw: Raw = serde_json::from_value(value)
            .map_err(|e| Failure::new(code::DECODE, "a plug-in's result cannot be decoded", e.to_string()))?;
        Ok(Self { ips: raw.ips.into_iter().map(|ip| ip.address).collect(), dns: raw.dns })
    }
}

/// What ADD reports under `version`.
pub fn add_answer(
    version: &str,
    ends: &Ends<'_>,
    ips: &[IpAddr],
    gateways: &[IpAddr],
    dns: Option<&Value>,
) -> Value {
    let interface = |name: &str, mac: MacAddr, sandbox: Option<&Path>| {
        let mut interface = json!({ "name": name, "mac": mac.to_string() });
        if let Some(sandbox) = sandbox {
            interface["sandbox"] = json!(sandbox.to_string_lossy());
        }
        if version == "1.1.0" {
            interface["mtu"] = json!(ends.mtu);
        }
        interface
    };
    let gateway_for = |ip: &IpAddr| gateways.iter().find(|g| g.is_ipv4() == ip.is_ipv4());
    let addresses: Vec<Value> = ips
        .iter()
        .map(|ip| {
            let mut entry = json!({ "interface": 1, "address": IpNet::from(*ip).to_string() });
            if let Some(gateway) = gateway_for(ip) {
                entry["gateway"] = json!(gateway.to_string());
            }
            if version == "0.4.0" {
                entry["version"] = json!(if ip.is_ipv4() { "4" } else { "6" });
            }
            entry
        })
        .collect();
    let routes: Vec<Value> = gateways
        .iter()
        .map(|g| json!({ "dst": if g.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": g.to_string() }))
        .collect();
    json!({
        "cniVersion": version,
        "interfaces": [
            interface(ends.host_name, ends.host_mac, None),
            interface(ends.pod_name, ends.pod_mac, Some(ends.netns)),
        ],
        "ips": addresses,
        "routes": routes,
        "dns": dns.cloned().unwrap_or_else(|| json!({})),
    })
}

/// The two ends of a finished pair, for [`add_answer`].
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Host end, by name.
    pub host_name: &'a str,
    /// Its Ethernet address.
    pub host_mac: MacAddr,
    /// Pod end, by name.
    pub pod_name: &'a str,
    /// Its Ethernet address.
    pub pod_mac: MacAddr,
    /// The container's network namespace.
    pub netns: &'a Path,
    /// MTU of both.
    pub mtu: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(edit: impl FnOnce(&mut Value)) -> Result<NetConf, Failure> {
        let mut document = json!({ "cniVersion": "1.1.0", "name": "pods", "type": "margay", "ipam": { "type": "host-local" } });
        edit(&mut document);
        NetConf::parse(document.to_string().as_bytes())
    }

    #[test]
    fn a_plain_configuration_gets_the_defaults() {
        let conf = conf(|_| {}).expect("valid");
        assert_eq!(conf.agent_socket, Path::new("/run/margay/agent.sock"));
        assert_eq!((conf.mtu, conf.attach_timeout, conf.valid), (None, Duration::from_secs(10), None));
    }

    #[test]
    fn each_fault_has_the_code_of_the_specification() {
        let code_of = |edit: fn(&mut Value)| conf(edit).expect_err("invalid").code;
        assert_eq!(code_of(|c| c["cniVersion"] = json!("0.3.1")), code::VERSION);
        assert_eq!(code_of(|c| c["cniVersion"] = json!("9.0.0")), code::VERSION);
        assert_eq!(code_of(|c| c["name"] = json!("")), code::CONFIG);
        assert_eq!(code_of(|c| c["name"] = json!("a/b")), code::CONFIG);
        assert_eq!(code_of(|c| c["ipam"] = json!({})), code::CONFIG);
        assert_eq!(code_of(|c| c["ipam"] = json!({ "type": "../sh" })), code::CONFIG);
        assert_eq!(code_of(|c| c["mtu"] = json!(1279)), code::CONFIG);
        assert_eq!(code_of(|c| c["mtu"] = json!("big")), code::DECODE);
        assert_eq!(NetConf::parse(b"{").expect_err("cut off").code, code::DECODE);
    }

    #[test]
    fn identifiers_are_checked_before_they_reach_the_kernel() {
        let key = |id: &str, ifname: &str| {
            let pairs = [("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)];
            Environment(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()).key()
        };
        assert!(key("abc-1.2_3", "eth0").is_ok());
        for (id, ifname) in [
            ("", "eth0"),
            ("../x", "eth0"),
            ("a b", "eth0"),
            ("a", ""),
            ("a", "a/b"),
            ("a", "abcdefghijklmnop"),
            ("a", ".."),
        ] {
            assert_eq!(key(id, ifname).expect_err("invalid").code, code::ENVIRONMENT, "{id:?} {ifname:?}");
        }
    }

    #[test]
    fn results_of_both_shapes_are_read() {
        let old = json!({ "cniVersion": "0.4.0", "ips": [{ "version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1" }] });
        let new = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "fd00::2/64" }], "routes": [{ "dst": "::/0" }] });
        assert_eq!(CniResult::parse(old).expect("old").ips, ["10.0.0.2/24".parse().expect("net")]);
        assert_eq!(CniResult::parse(new).expect("new").ips, ["fd00::2/64".parse().expect("net")]);
    }
}
