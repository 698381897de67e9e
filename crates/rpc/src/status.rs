//! Ways of failing as codes of the protocol: shown and counted; what an error means is in its detail.
use connectrpc::ErrorCode;
use model::Kind;

pub(crate) fn code(kind: Kind) -> ErrorCode {
    match kind {
        Kind::Invalid => ErrorCode::InvalidArgument,
        Kind::Unauthenticated => ErrorCode::Unauthenticated,
        Kind::Forbidden => ErrorCode::PermissionDenied,
        Kind::NotFound => ErrorCode::NotFound,
        Kind::Conflict => ErrorCode::FailedPrecondition,
        Kind::Exhausted => ErrorCode::ResourceExhausted,
        Kind::Unsupported => ErrorCode::Unimplemented,
        Kind::Unavailable => ErrorCode::Unavailable,
        Kind::Timeout => ErrorCode::DeadlineExceeded,
        Kind::Internal => ErrorCode::Internal,
    }
}
