/// The closed list of ways in which an operation fails. `wire::status` alone turns it into statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request cannot be carried out as written; asking again changes nothing.
    Invalid,
    /// Who asks is not known.
    Unauthenticated,
    /// Who asks is known and may not.
    Forbidden,
    /// The object does not exist, or belongs to somebody else: the two look the same.
    NotFound,
    /// The object is in a state that does not allow this; it may later.
    Conflict,
    /// A rate limit or quota of the caller is used up.
    Exhausted,
    /// What is asked for exists in the protocol and is not supported here.
    Unsupported,
    /// The system cannot do this now: no capacity, or a part of it is away.
    Unavailable,
    /// It took longer than it may.
    Timeout,
    /// A fault of ours.
    Internal,
}

impl Kind {
    /// Every kind, for tables and tests that must cover all of them.
    pub const ALL: [Kind; 10] = [
        Kind::Invalid,
        Kind::Unauthenticated,
        Kind::Forbidden,
        Kind::NotFound,
        Kind::Conflict,
        Kind::Exhausted,
        Kind::Unsupported,
        Kind::Unavailable,
        Kind::Timeout,
        Kind::Internal,
    ];
}
