use std::os::unix::fs::PermissionsExt as _;

use model::NodeId;

use super::*;
use crate::identity::{Certified, Role};

fn named(cluster: &str) -> ClusterName {
    cluster.parse().unwrap()
}

fn api(cluster: &str) -> Identity {
    Identity::new(&named(cluster), Role::Api, "api-1").unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_authority_is_opened_as_it_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let made = Authority::create(&dir, &named("blue")).unwrap();
    let opened = Authority::open(&dir).unwrap();
    assert_eq!(opened.cluster().as_str(), "blue");
    assert_eq!(opened.trust_pem(), made.trust_pem());
    assert_eq!(mode(&dir.join(KEY)), 0o600);
    assert_eq!(mode(&dir), 0o700);
}

#[test]
fn an_authority_is_not_made_over_another() {
    let dir = tempfile::tempdir().unwrap();
    Authority::create(dir.path(), &named("blue")).unwrap();
    let key = fs::read(dir.path().join(KEY)).unwrap();
    assert!(matches!(
        Authority::create(dir.path(), &named("green")),
        Err(AuthorityError::Exists(_))
    ));
    assert_eq!(fs::read(dir.path().join(KEY)).unwrap(), key);
}

#[test]
fn a_certificate_says_who_and_until_when() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), &named("blue")).unwrap();
    let node = Identity::of_node(&named("blue"), NodeId::random());
    let before = SystemTime::now();
    let issued = authority.issue(&node, TTL).unwrap();
    let der = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
    let certified = Certified::of(&der).unwrap();
    assert_eq!(certified.identity, node);
    let until = certified.until.duration_since(before).unwrap();
    assert!(
        until <= TTL + Duration::from_secs(5) && until + Duration::from_secs(5) > TTL,
        "{until:?}"
    );
    assert!(certified.from < before - SKEW / 2);
}

#[test]
fn no_certificate_is_issued_for_another_cluster_or_for_too_long_or_short() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), &named("blue")).unwrap();
    let refused = |identity: &Identity, ttl| authority.issue(identity, ttl).err().unwrap().to_string();
    assert_eq!(
        refused(&api("green"), TTL),
        "the authority is of cluster 'blue', and cannot speak for 'green'"
    );
    for ttl in [Duration::from_secs(299), TTL_MAX + Duration::from_secs(1)] {
        assert!(refused(&api("blue"), ttl).starts_with("a certificate is worth"));
    }
}

#[test]
fn files_of_a_process_are_whole_and_its_key_is_its_own() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::create(dir.path(), &named("blue")).unwrap();
    let files = authority.issue_into(out.path(), &api("blue"), TTL).unwrap();
    assert_eq!(mode(&files.key), 0o600);
    assert_eq!(files.certificate, out.path().join("api-1.pem"));
    assert_eq!(fs::read_to_string(&files.trust).unwrap(), authority.trust_pem());
    let names = fs::read_dir(out.path()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["api-1-key.pem", "api-1.pem", "ca.pem"]);
}

#[test]
fn a_new_key_signs_after_a_rotation_and_the_old_is_trusted_until_it_is_retired() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = Authority::create(dir.path(), &named("blue")).unwrap();
    let first = authority.trust_pem().to_owned();
    authority.rotate().unwrap();
    assert!(authority.trust_pem().starts_with(&first));
    assert_eq!(pem_blocks(authority.trust_pem()).len(), 2);
    let mut opened = Authority::open(dir.path()).unwrap();
    opened.issue(&api("blue"), TTL).unwrap();
    opened.retire().unwrap();
    assert_eq!(pem_blocks(opened.trust_pem()).len(), 1);
    assert_ne!(opened.trust_pem(), first);
    Authority::open(dir.path()).unwrap();
}

#[test]
fn a_rotation_that_was_cut_short_leaves_the_old_key_signing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), &named("blue")).unwrap();
    let (pem, _) = new_root(&named("blue")).unwrap();
    let both = format!("{}{pem}", authority.trust_pem());
    write(&dir.path().join(CERTIFICATE), &both, 0o644).unwrap();
    let mut opened = Authority::open(dir.path()).unwrap();
    opened.retire().unwrap();
    assert_eq!(opened.trust_pem(), authority.trust_pem());
}

#[test]
fn files_that_are_no_authoritys_are_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::create(dir.path(), &named("blue")).unwrap();
    Authority::create(other.path(), &named("blue")).unwrap();
    fs::copy(other.path().join(KEY), dir.path().join(KEY)).unwrap();
    assert!(matches!(
        Authority::open(dir.path()),
        Err(AuthorityError::Foreign { .. })
    ));
    assert!(matches!(
        Authority::open(&dir.path().join("none")),
        Err(AuthorityError::File { .. })
    ));
}
