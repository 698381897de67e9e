use model::MiB;
use orchestrator::Config;
use serde::Deserialize;

/// What volumes may hold: `[volumes]` of the file. Disks take the room that is written, so sizes are bounds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VolumesSettings {
    /// The size of a new volume, MiB [default: 10240].
    size_mib: Option<u32>,
    /// The most volumes of one team [default: 100].
    per_team: Option<u32>,
    /// What a team's volumes may hold in sum, MiB [default: 1048576].
    total_mib: Option<u32>,
}

impl VolumesSettings {
    /// What the orchestrator is told.
    pub(crate) fn config(self) -> Config {
        let usual = Config::default();
        Config {
            volume_size: self.size_mib.map_or(usual.volume_size, MiB),
            volumes_max: self.per_team.unwrap_or(usual.volumes_max),
            volumes_size_max: self.total_mib.map_or(usual.volumes_size_max, MiB),
            ..usual
        }
    }
}
