//! What the kernel's command line tells the agent.
use std::net::Ipv4Addr;
use std::str::FromStr;

/// x86's kernel takes no longer one (`COMMAND_LINE_SIZE`).
const COMMAND_LINE_BYTES_MAX: usize = 2048;
/// As resolv.conf(5) has it.
const NAMESERVERS_MAX: usize = 3;
/// As the kernel has it (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES_MAX: usize = 64;

/// Settings of one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The machine's name.
    pub hostname: String,
    /// What `/etc/machine-id` gets, 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// The address of `eth0`; `None` where there is no network.
    pub network: Option<Network>,
    /// Who is asked for names, at most three.
    pub nameservers: Vec<Ipv4Addr>,
    /// How the host talks to the agent.
    pub line: LineKind,
    /// The disk that holds the root, an ext4.
    pub root: RootDisk,
}

/// An address, and who leads out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The machine's own.
    pub address: Ipv4Addr,
    /// How many bits of it are the network's.
    pub prefix: u8,
    /// Where everything else goes; nowhere, if there is none.
    pub gateway: Option<Ipv4Addr>,
}

/// What carries the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineKind {
    /// The virtio-serial port [`SERIAL_NAME`](crate::line::SERIAL_NAME).
    Serial,
    /// vsock.
    Vsock,
}

/// A disk, by its place among the machine's virtio block devices: `vda` is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootDisk(u8);

impl RootDisk {
    /// The first.
    pub const FIRST: Self = Self(b'a');

    /// Its device.
    #[must_use]
    pub fn device(self) -> String {
        format!("/dev/vd{}", char::from(self.0))
    }
}

/// What is wrong with settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// One of them is not told.
    #[error("the command line does not say atoll.{0}")]
    Missing(&'static str),
    /// One of them is not what it should be.
    #[error("atoll.{name} cannot be {value:?}")]
    Wrong {
        /// Which.
        name: String,
        /// As told.
        value: String,
    },
    /// It does not fit into the kernel.
    #[error("a command line has at most {COMMAND_LINE_BYTES_MAX} bytes")]
    Long,
}

impl Settings {
    /// As words of a kernel command line. There is one with `quiet`, a console and the like before it.
    ///
    /// # Errors
    /// A setting is not what it may be.
    pub fn to_command_line(&self) -> Result<String, SettingsError> {
        let line = match self.line {
            LineKind::Serial => "serial",
            LineKind::Vsock => "vsock",
        };
        let mut words = vec![
            format!("atoll.hostname={}", self.hostname),
            format!("atoll.machine_id={}", self.machine_id),
            format!("atoll.line={line}"),
            format!("atoll.root=vd{}", char::from(self.root.0)),
        ];
        if let Some(network) = self.network {
            let Network { address, prefix, .. } = network;
            words.push(format!("atoll.address={address}/{prefix}"));
            words.extend(network.gateway.map(|gateway| format!("atoll.gateway={gateway}")));
        }
        if !self.nameservers.is_empty() {
            let servers: Vec<String> = self.nameservers.iter().map(Ipv4Addr::to_string).collect();
            words.push(format!("atoll.nameservers={}", servers.join(",")));
        }
        let told = words.join(" ");
        if Self::parse(&told)? == *self {
            Ok(told)
        } else {
            Err(SettingsError::Wrong {
                name: "address".to_owned(),
                value: told,
            })
        }
    }

    /// Of a command line, whatever else is on it.
    ///
    /// # Errors
    /// A setting is missing, not what it may be, or not known: a newer host's agent is another bundle's.
    pub fn parse(command_line: &str) -> Result<Self, SettingsError> {
        if command_line.len() > COMMAND_LINE_BYTES_MAX {
            return Err(SettingsError::Long);
        }
        let (mut hostname, mut machine_id, mut address, mut gateway, mut line) =
            (None, None, None, None, None);
        let (mut nameservers, mut root) = (Vec::new(), RootDisk::FIRST);
        for word in command_line.split_ascii_whitespace() {
            let Some(setting) = word.strip_prefix("atoll.") else {
                continue;
            };
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            let wrong = || SettingsError::Wrong {
                name: name.to_owned(),
                value: value.to_owned(),
            };
            match name {
                "hostname" if is_hostname(value) => hostname = Some(value.to_owned()),
                "machine_id" if is_machine_id(value) => machine_id = Some(value.to_owned()),
                "address" => {
                    let (ip, prefix) = value.split_once('/').ok_or_else(wrong)?;
                    let prefix = number::<u8>(prefix)
                        .filter(|prefix| *prefix <= 32)
                        .ok_or_else(wrong)?;
                    address = Some((ip.parse().map_err(|_| wrong())?, prefix));
                }
                "gateway" => gateway = Some(value.parse().map_err(|_| wrong())?),
                "nameservers" => {
                    let servers: Result<Vec<Ipv4Addr>, _> = value.split(',').map(str::parse).collect();
                    nameservers = servers.map_err(|_| wrong())?;
                    if nameservers.len() > NAMESERVERS_MAX {
                        return Err(wrong());
                    }
                }
                "line" => {
                    line = Some(match value {
                        "serial" => LineKind::Serial,
                        "vsock" => LineKind::Vsock,
                        _ => return Err(wrong()),
                    });
                }
                "root" => match value.strip_prefix("vd").map(str::as_bytes) {
                    Some([letter @ b'a'..=b'z']) => root = RootDisk(*letter),
                    _ => return Err(wrong()),
                },
                _ => return Err(wrong()),
            }
        }
        Ok(Self {
            hostname: hostname.ok_or(SettingsError::Missing("hostname"))?,
            machine_id: machine_id.ok_or(SettingsError::Missing("machine_id"))?,
            network: address.map(|(address, prefix)| Network {
                address,
                prefix,
                gateway,
            }),
            nameservers,
            line: line.ok_or(SettingsError::Missing("line"))?,
            root,
        })
    }
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// Whether it may be a machine's name: letters, digits and hyphens, in labels.
#[must_use]
pub fn is_hostname(name: &str) -> bool {
    let is_label = |label: &str| {
        let of = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(of) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= HOSTNAME_BYTES_MAX && name.split('.').all(is_label)
}

/// Whether it is one of machine-id(5).
#[must_use]
pub fn is_machine_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            hostname: "i-1.atoll".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            network: Some(Network {
                address: Ipv4Addr::new(10, 0, 2, 15),
                prefix: 24,
                gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            }),
            nameservers: vec![Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(1, 1, 1, 1)],
            line: LineKind::Serial,
            root: RootDisk::FIRST,
        }
    }

    #[test]
    fn what_is_told_is_understood_among_other_words() {
        let check = |settings: Settings| {
            let told = settings.to_command_line().unwrap();
            let line = format!("console=ttyS0 {told} panic=-1\n");
            assert_eq!(Settings::parse(&line), Ok(settings), "{line}");
        };
        check(settings());
        check(Settings {
            network: None,
            nameservers: vec![],
            line: LineKind::Vsock,
            root: RootDisk(b'c'),
            ..settings()
        });
    }

    #[test]
    fn what_could_say_something_else_is_not_told() {
        let named = |hostname: &str| Settings {
            hostname: hostname.into(),
            ..settings()
        };
        for name in ["", "a b", "a atoll.root=vdb", "-a", "a..b", &"a".repeat(65)] {
            assert!(named(name).to_command_line().is_err(), "{name}");
        }
        let id = Settings {
            machine_id: "x".into(),
            ..settings()
        };
        assert!(id.to_command_line().is_err());
        let many = Settings {
            nameservers: vec![Ipv4Addr::LOCALHOST; 4],
            ..settings()
        };
        assert!(many.to_command_line().is_err());
    }

    #[test]
    fn settings_that_are_not_understood_are_refused_by_name() {
        let told = settings().to_command_line().unwrap();
        let refused = |word: &str| {
            Settings::parse(&format!("{told} {word}"))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(refused("atoll.swap=1"), r#"atoll.swap cannot be "1""#);
        assert_eq!(refused("atoll.root=sda"), r#"atoll.root cannot be "sda""#);
        assert_eq!(
            refused("atoll.address=10.0.0.1/33"),
            r#"atoll.address cannot be "10.0.0.1/33""#
        );
        assert_eq!(refused(&"x".repeat(2048)), SettingsError::Long.to_string());
        assert_eq!(Settings::parse("quiet"), Err(SettingsError::Missing("hostname")));
    }
}
