//! The tokens of sandboxes, derived and never stored (contract 2.2): they stay the same over pauses and restarts, and
//! whoever has the seed has them all.
use hmac::{Hmac, Mac};
use model::{Sandbox, SandboxId, Secret};
use ports::manager::Granted;
use sha2::Sha256;

pub(crate) struct Tokens(Secret<Vec<u8>>);

impl Tokens {
    pub(crate) fn new(seed: Secret<Vec<u8>>) -> Self {
        Self(seed)
    }

    fn derive(&self, purpose: &str, id: SandboxId) -> Secret<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
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
    use model::TeamId;
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
