//! The users of sandboxes: those of each slot of each daemon on this machine are apart.
/// Slots of an instance: 65 536 users each.
pub(crate) const SLOTS_MAX: u32 = 4096;
/// Users of one sandbox.
pub(crate) const USERS: u32 = 65_536;

/// The first of a slot's users on the host: each of the [`net::INSTANCES_MAX`] instances has a sixteenth of the 2^32, and the
/// first and last are the host's.
pub(crate) fn first_user(instance: u32, slot: u32) -> u32 {
    (instance + 1) * (SLOTS_MAX * USERS) + slot * USERS
}

#[cfg(test)]
mod tests {
    use net::INSTANCES_MAX;

    use super::*;

    #[test]
    fn the_users_of_all_slots_are_apart_and_none_is_the_hosts() {
        assert_eq!(first_user(0, 0), 0x1000_0000);
        assert_eq!(first_user(0, SLOTS_MAX - 1) + USERS, first_user(1, 0));
        assert!(
            first_user(INSTANCES_MAX - 1, SLOTS_MAX - 1)
                .checked_add(USERS - 1)
                .unwrap()
                < 0xF000_0000
        );
    }
}
