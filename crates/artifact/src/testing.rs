//! Archives that tests make, right ones and wrong ones.
use std::io::Write as _;

use crate::digest::Digest;

/// A tar that is being written.
#[derive(Default, Clone)]
pub(crate) struct Tar(Vec<u8>);

/// An entry that is to be written, byte by byte as it is said here.
#[derive(Clone)]
pub(crate) struct Raw<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) flag: u8,
    pub(crate) link: &'a [u8],
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u64, u64),
    /// What the header says, where that is not the length of the body.
    pub(crate) size: Option<u64>,
    pub(crate) body: &'a [u8],
}

impl Raw<'_> {
    pub(crate) const PLAIN: Raw<'static> = Raw {
        path: b"",
        flag: b'0',
        link: b"",
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1_500_000_000,
        device: (0, 0),
        size: None,
        body: b"",
    };
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, raw: &Raw<'_>) -> Self {
        let mut block = [0_u8; 512];
        let put = |block: &mut [u8; 512], at: usize, bytes: &[u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes)
        };
        let number = |block: &mut [u8; 512], at: usize, width: usize, value: u64| {
            let text = format!("{value:0width$o}", width = width - 1);
            if text.len() < width {
                block[at..at + text.len()].copy_from_slice(text.as_bytes());
            } else {
                block[at + width - 8..at + width].copy_from_slice(&value.to_be_bytes());
                block[at] |= 0x80;
            }
        };
        put(&mut block, 0, &raw.path[..raw.path.len().min(100)]);
        put(&mut block, 157, &raw.link[..raw.link.len().min(100)]);
        number(&mut block, 100, 8, raw.mode);
        number(&mut block, 108, 8, raw.uid);
        number(&mut block, 116, 8, raw.gid);
        number(&mut block, 124, 12, raw.size.unwrap_or(raw.body.len() as u64));
        number(&mut block, 136, 12, raw.mtime);
        block[156] = raw.flag;
        put(&mut block, 257, b"ustar\x0000");
        number(&mut block, 329, 8, raw.device.0);
        number(&mut block, 337, 8, raw.device.1);
        seal(&mut block);
        self.0.extend_from_slice(&block);
        self.body(raw.body)
    }

    /// Bytes in whole blocks.
    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, body: &[u8]) -> Self {
        self.raw(&Raw {
            path: path.as_bytes(),
            body,
            ..Raw::PLAIN
        })
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.raw(&Raw {
            path: path.as_bytes(),
            flag: b'5',
            mode: 0o755,
            ..Raw::PLAIN
        })
    }

    pub(crate) fn symlink(self, path: &str, to: &str) -> Self {
        self.raw(&Raw {
            path: path.as_bytes(),
            flag: b'2',
            link: to.as_bytes(),
            ..Raw::PLAIN
        })
    }

    pub(crate) fn link(self, path: &str, to: &str) -> Self {
        self.raw(&Raw {
            path: path.as_bytes(),
            flag: b'1',
            link: to.as_bytes(),
            ..Raw::PLAIN
        })
    }

    /// An extended header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', records)
    }

    pub(crate) fn extended(self, flag: u8, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(&Raw {
            path: b"pax",
            flag,
            body: &body,
            ..Raw::PLAIN
        })
    }

    /// GNU's long name (`L`) or link (`K`) for the next entry.
    pub(crate) fn long(self, flag: u8, text: &[u8]) -> Self {
        let body = [text, b"\0"].concat();
        self.raw(&Raw {
            path: b"././@LongLink",
            flag,
            body: &body,
            ..Raw::PLAIN
        })
    }

    /// A block as it is given, with the right sum.
    pub(crate) fn block(mut self, mut block: [u8; 512]) -> Self {
        seal(&mut block);
        self.0.extend_from_slice(&block);
        self
    }

    /// Two empty blocks end it.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// It just stops.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.0
    }
}

fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// An image that a test makes: as a registry has it, or as an archive.
#[derive(Clone)]
pub(crate) struct Picture {
    /// Compressed layers with their media types and the digests of their tars; the lowest first.
    pub(crate) layers: Vec<(Vec<u8>, &'static str, Digest)>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

pub(crate) fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Picture {
    /// Of tars, each compressed in turn by gzip and zstd.
    pub(crate) fn of(tars: &[Vec<u8>], architecture: &str) -> Self {
        let layers: Vec<_> = tars
            .iter()
            .enumerate()
            .map(|(at, tar)| match at % 2 {
                0 => (gzip(tar), GZIP, Digest::of(tar)),
                _ => (zstd(tar), ZSTD, Digest::of(tar)),
            })
            .collect();
        let diffs: Vec<_> = layers.iter().map(|(_, _, diff)| diff.to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/bin", "EMPTY="], "WorkingDir": "/srv", "User": "1000:1000", "Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        let config = config.to_string().into_bytes();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(bytes, media, _)| serde_json::json!({"mediaType": media, "digest": Digest::of(bytes), "size": bytes.len()}))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
            "layers": descriptors,
        });
        Self {
            layers,
            config,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// All that a registry has of it beside the manifest.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &[u8]> {
        self.layers
            .iter()
            .map(|(bytes, ..)| bytes.as_slice())
            .chain([self.config.as_slice()])
    }

    /// As an index names it.
    pub(crate) fn descriptor(&self, architecture: &str) -> serde_json::Value {
        serde_json::json!({
            "mediaType": MANIFEST, "digest": self.digest(), "size": self.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture},
        })
    }
}

pub(crate) fn index(manifests: &[serde_json::Value]) -> Vec<u8> {
    serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
        .to_string()
        .into_bytes()
}
