//! The tokens of sandboxes and volumes, derived and never stored (contract 2.2): they stay the same over pauses and restarts, and
//! whoever has the seed has them all.
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use model::{Sandbox, SandboxId, Secret, Volume};
use ports::manager::Granted;
use sha2::Sha256;

/// What tokens of volumes begin with.
const VOLUME_PREFIX: &str = "vt_";

pub(crate) struct Tokens(Secret<Vec<u8>>);

impl Tokens {
    pub(crate) fn new(seed: Secret<Vec<u8>>) -> Self {
        Self(seed)
    }

    fn mac(&self, purpose: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
        mac
    }

    fn derive(&self, purpose: &str, id: SandboxId) -> Secret<String> {
        let mut mac = self.mac(purpose);
        mac.update(id.as_str().as_bytes());
        Secret::new(hex::encode(mac.finalize().into_bytes()))
    }

    /// What envd asks for in a secured sandbox.
    pub(crate) fn envd(&self, sandbox: &Sandbox) -> Option<Secret<String>> {
        sandbox.secure.then(|| self.derive("", sandbox.id))
    }

    /// What traffic to a sandbox with private ingress must carry.
    pub(crate) fn traffic(&self, sandbox: &Sandbox) -> Option<Secret<String>> {
        sandbox
            .network
            .is_private()
            .then(|| self.derive("traffic-", sandbox.id))
    }

    /// What opens the content of a volume until `until`: `vt_`, the seconds at which it ends, and a proof that it was made
    /// here for this volume of this team.
    pub(crate) fn volume(&self, volume: &Volume, until: SystemTime) -> Secret<String> {
        let seconds = until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let proof = self.volume_mac(volume, seconds).finalize().into_bytes();
        Secret::new(format!("{VOLUME_PREFIX}{seconds:x}_{}", hex::encode(proof)))
    }

    /// Whether a token opens the content of a volume at `now`. How much of it is right is not told by how long this takes.
    pub(crate) fn opens_volume(&self, volume: &Volume, token: &str, now: SystemTime) -> bool {
        let parts = token
            .strip_prefix(VOLUME_PREFIX)
            .and_then(|rest| rest.split_once('_'));
        let Some((seconds, proof)) = parts else {
            return false;
        };
        let (Ok(seconds), Ok(proof)) = (u64::from_str_radix(seconds, 16), hex::decode(proof)) else {
            return false;
        };
        let is_right = self.volume_mac(volume, seconds).verify_slice(&proof).is_ok();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        is_right && now < seconds
    }

    fn volume_mac(&self, volume: &Volume, seconds: u64) -> Hmac<Sha256> {
        let mut mac = self.mac("volume-");
        mac.update(volume.id.0.as_bytes());
        mac.update(volume.team.0.as_bytes());
        mac.update(&seconds.to_be_bytes());
        mac
    }

    /// The sandbox with what its owner may know.
    pub(crate) fn grant(&self, sandbox: Sandbox) -> Granted {
        let (envd_token, traffic_token) = (self.envd(&sandbox), self.traffic(&sandbox));
        Granted {
            sandbox,
            envd_token,
            traffic_token,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::{MiB, TeamId, VolumeId, VolumeState};
    use ports::store::contract;

    use super::*;

    #[test]
    fn tokens_depend_on_seed_id_and_purpose_and_on_nothing_else() {
        let tokens = Tokens::new(Secret::new(vec![7; 32]));
        let mut one = contract::sandbox(TeamId::random());
        one.network.public_traffic = Some(false);
        let envd = tokens.envd(&one).unwrap();
        assert_eq!(envd.expose().len(), 64);
        assert_ne!(Some(&envd), tokens.traffic(&one).as_ref());
        let again = Sandbox {
            version: 9,
            team: TeamId::random(),
            ..one.clone()
        };
        assert_eq!(tokens.envd(&again), Some(envd.clone()));
        let other = Sandbox {
            id: SandboxId::random(),
            ..one.clone()
        };
        assert_ne!(tokens.envd(&other), Some(envd.clone()));
        assert_ne!(Tokens::new(Secret::new(vec![8; 32])).envd(&one), Some(envd));
    }

    #[test]
    fn a_token_opens_one_volume_of_one_team_until_its_end() {
        let tokens = Tokens::new(Secret::new(vec![7; 32]));
        let at = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let volume = Volume {
            id: VolumeId::random(),
            team: TeamId::random(),
            name: "data".to_owned(),
            size: MiB(1),
            created_at: at,
            home: None,
            state: VolumeState::Ready,
            version: 0,
        };
        let second = Duration::from_secs(1);
        let token = tokens.volume(&volume, at + 10 * second);
        let token = token.expose().as_str();
        assert!(token.starts_with("vt_"));
        let opens =
            |tokens: &Tokens, volume: &Volume, token: &str, now| tokens.opens_volume(volume, token, now);
        assert!(opens(&tokens, &volume, token, at) && opens(&tokens, &volume, token, at + 9 * second));
        assert!(!opens(&tokens, &volume, token, at + 10 * second), "it ends");
        let other = Volume {
            id: VolumeId::random(),
            ..volume.clone()
        };
        let foreign = Volume {
            team: TeamId::random(),
            ..volume.clone()
        };
        assert!(!opens(&tokens, &other, token, at) && !opens(&tokens, &foreign, token, at));
        assert!(!opens(&Tokens::new(Secret::new(vec![8; 32])), &volume, token, at));
        let later = token.replacen("vt_", "vt_f", 1);
        for bad in [
            "",
            "vt_",
            "vt__",
            "vt_1_",
            "x",
            &later,
            &token[..token.len() - 1],
            &format!("{token}00"),
        ] {
            assert!(!opens(&tokens, &volume, bad, at), "{bad}");
        }
    }

    #[test]
    fn an_open_sandbox_has_no_tokens() {
        let tokens = Tokens::new(Secret::new(vec![7; 32]));
        let open = Sandbox {
            secure: false,
            ..contract::sandbox(TeamId::random())
        };
        let granted = tokens.grant(open);
        assert_eq!((granted.envd_token, granted.traffic_token), (None, None));
    }
}
