//! Reading a file: `GET /files`.
use std::fs::File;
use std::future::Future as _;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::task::JoinHandle;

use super::conditions::{self, Sent};
use super::encoding::{self, Encoding};
use super::pieces::Pieces;
use super::signature::Operation;
use super::{Caller, PIECE_BYTES, Query, base_name, blocking, failed, media_type, regular};
use crate::access::Refusal;
use crate::http::{Answer, Envd, full};
use crate::paths::passable;
use crate::request_body::RequestBody;

/// Bytes of a name that stand for themselves in `filename*` (RFC 8187).
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Answers with a file's content. It is read as root: whoever may ask may read everything.
pub(crate) async fn download(envd: &Envd, request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let query = Query::of(request.uri());
    let caller = Caller::admit(envd, &query, request.headers(), Operation::Read)?;
    let path = caller.place(&query.path)?;
    let (parts, _) = request.into_parts();
    blocking(move || answer(&path, &parts.method, &parts.headers)).await
}

fn answer(path: &str, method: &Method, headers: &HeaderMap) -> Result<Answer, Refusal> {
    let place = passable(path);
    look(&place, path)?;
    let encoding = encoding::choose(headers).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_ACCEPTABLE,
            "no acceptable encoding: gzip and identity are offered",
        )
    })?;
    // Parts and conditions are about the content as it is; so is a file of the kernel, whose size nobody knows.
    let encoding = if conditions::any(headers) && takes_identity(headers) {
        Encoding::Identity
    } else {
        encoding
    };
    let (file, size_bytes, modified) = open(&place, path)?;
    let (sent, sized) = match encoding {
        Encoding::Gzip => (Sent::Whole, false),
        Encoding::Identity if size_bytes == 0 => (Sent::Whole, false),
        Encoding::Identity => (conditions::decide(headers, size_bytes, modified), true),
    };
    let mut answer = Response::new(());
    *answer.status_mut() = match sent {
        Sent::Whole => StatusCode::OK,
        Sent::Part(_) => StatusCode::PARTIAL_CONTENT,
        Sent::NotModified => StatusCode::NOT_MODIFIED,
        Sent::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        Sent::Unsatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
    };
    describe(answer.headers_mut(), path, &file, modified);
    let range = match sent {
        Sent::Whole => sized.then_some(0..size_bytes),
        Sent::Part(range) => {
            let told = format!("bytes {}-{}/{size_bytes}", range.start, range.end - 1);
            answer.headers_mut().insert(header::CONTENT_RANGE, value(&told));
            Some(range)
        }
        Sent::NotModified | Sent::PreconditionFailed => return Ok(answer.map(|()| full(Bytes::new()))),
        Sent::Unsatisfiable => {
            answer
                .headers_mut()
                .insert(header::CONTENT_RANGE, value(&format!("bytes */{size_bytes}")));
            return Ok(answer.map(|()| full(Bytes::new())));
        }
    };
    if encoding == Encoding::Gzip {
        answer
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    } else {
        answer
            .headers_mut()
            .insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if let Some(range) = &range {
        answer
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    }
    if method == Method::HEAD {
        return Ok(answer.map(|()| full(Bytes::new())));
    }
    let reading = Reading::start(Reader::new(file, range, encoding))
        .map_err(|error| failed("reading", path, &error))?;
    Ok(answer.map(|()| reading.boxed_unsync()))
}

fn takes_identity(headers: &HeaderMap) -> bool {
    let mut alone = HeaderMap::new();
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        alone.append(header::ACCEPT_ENCODING, value.clone());
    }
    alone.append(header::ACCEPT_ENCODING, HeaderValue::from_static("x-anything"));
    encoding::choose(&alone) == Some(Encoding::Identity)
}

/// Whether there is something to read. Nothing is opened yet.
fn look(place: &str, path: &str) -> Result<(), Refusal> {
    match rustix::fs::stat(place) {
        Ok(found) => regular(path, FileType::from_raw_mode(found.st_mode)),
        Err(error)
            if matches!(
                io::Error::from(error).kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(Refusal::new(
                StatusCode::NOT_FOUND,
                format!("path '{path}' does not exist"),
            ))
        }
        Err(error) => Err(failed("reading", path, &error.into())),
    }
}

/// Opens a file, with its size and time. What was put in its place meanwhile is not waited for.
fn open(place: &str, path: &str) -> Result<(File, u64, SystemTime), Refusal> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(place, flags, Mode::empty())
        .map_err(|error| failed("opening", path, &error.into()))?;
    let found = rustix::fs::fstat(&file).map_err(|error| failed("opening", path, &error.into()))?;
    regular(path, FileType::from_raw_mode(found.st_mode))?;
    let file = File::from(file);
    let modified = file
        .metadata()
        .and_then(|found| found.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    Ok((file, u64::try_from(found.st_size).unwrap_or(0), modified))
}

fn describe(headers: &mut HeaderMap, path: &str, file: &File, modified: SystemTime) {
    let name = base_name(path);
    let media_type = media_type::by_name(name).unwrap_or_else(|| {
        let mut first = [0; media_type::SNIFFED_BYTES];
        let length = file.read_at(&mut first, 0).unwrap_or(0);
        media_type::by_content(&first[..length])
    });
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_DISPOSITION, value(&disposition(name)));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(date) = http_date(modified) {
        headers.insert(header::LAST_MODIFIED, value(&date));
    }
}

/// A time as headers tell it; `None`, where they cannot: a file may be of any year.
fn http_date(time: SystemTime) -> Option<String> {
    /// The first second of the year 10000.
    const END_S: u64 = 253_402_300_800;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since.as_secs() < END_S).then(|| httpdate::fmt_http_date(time))
}

/// `inline; filename=…`, in whichever of the three notations the name needs (RFC 6266).
fn disposition(name: &str) -> String {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte);
    if name.bytes().all(is_token) {
        format!("inline; filename={name}")
    } else if name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        format!(
            "inline; filename=\"{}\"",
            name.replace('\\', "\\\\").replace('"', "\\\"")
        )
    } else {
        format!("inline; filename*=utf-8''{}", utf8_percent_encode(name, PLAIN))
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Reads a file piece by piece.
struct Reader {
    file: File,
    offset: u64,
    /// Up to where; `None`: up to its end, wherever that is.
    end: Option<u64>,
    gzip: Option<GzEncoder<Vec<u8>>>,
    pieces: Pieces,
    is_over: bool,
}

impl Reader {
    fn new(file: File, range: Option<Range<u64>>, encoding: Encoding) -> Self {
        // Whoever waits for content inside one machine wants it soon rather than small.
        let gzip = (encoding == Encoding::Gzip).then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        let offset = range.as_ref().map_or(0, |range| range.start);
        Self {
            file,
            offset,
            end: range.map(|range| range.end),
            gzip,
            pieces: Pieces::default(),
            is_over: false,
        }
    }

    /// The next piece, of at least one byte; `None`: that was all.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.is_over {
            let plain = self.read()?;
            let Some(gzip) = &mut self.gzip else {
                return Ok((!plain.is_empty()).then(|| self.pieces.lend(plain)));
            };
            gzip.write_all(&plain)?;
            self.pieces.put(plain);
            if self.is_over {
                gzip.try_finish()?;
            }
            if !gzip.get_ref().is_empty() {
                return Ok(Some(std::mem::take(gzip.get_mut()).into()));
            }
        }
        Ok(None)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let left = self.end.map_or(u64::MAX, |end| end - self.offset);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let mut piece = self.pieces.take(wanted);
        while piece.len() < wanted {
            let read = match rustix::io::pread(
                &self.file,
                rustix::buffer::spare_capacity(&mut piece),
                self.offset,
            ) {
                Ok(read) => read,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.offset += read as u64;
            // The vector may have room for more than was promised: a file that grows must not be answered longer.
            if let Some(end) = self.end.filter(|end| self.offset > *end) {
                piece.truncate(piece.len() - usize::try_from(self.offset - end).unwrap_or(0));
                self.offset = end;
            }
            if read == 0 {
                self.is_over = true;
                break;
            }
        }
        if self.end.is_some_and(|end| self.offset < end) && self.is_over {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        self.is_over |= self.end.is_some_and(|end| self.offset >= end);
        Ok(piece)
    }
}

/// A file as a body: while one piece travels, the next is read.
struct Reading {
    first: Option<Bytes>,
    job: Option<JoinHandle<(Reader, io::Result<Option<Bytes>>)>>,
    left_bytes: Option<u64>,
}

impl Reading {
    fn start(mut reader: Reader) -> io::Result<Self> {
        let left_bytes = reader.end.map(|end| end - reader.offset);
        let first = reader.next()?;
        let job = (!reader.is_over).then(|| spawn(reader));
        Ok(Self {
            first,
            job,
            left_bytes,
        })
    }
}

fn spawn(mut reader: Reader) -> JoinHandle<(Reader, io::Result<Option<Bytes>>)> {
    tokio::task::spawn_blocking(move || {
        let next = reader.next();
        (reader, next)
    })
}

impl Body for Reading {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match self.first.take() {
            Some(first) => Some(first),
            None => {
                let Some(job) = self.job.as_mut() else {
                    return Poll::Ready(None);
                };
                let (reader, read) = ready!(Pin::new(job).poll(cx)).map_err(io::Error::other)?;
                self.job = (!reader.is_over && read.is_ok()).then(|| spawn(reader));
                read?
            }
        };
        if let (Some(left), Some(piece)) = (&mut self.left_bytes, &piece) {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.job.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left_bytes
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(mut reader: Reader) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = reader.next().unwrap() {
            assert!(piece.len() <= PIECE_BYTES);
            all.extend_from_slice(&piece);
        }
        all
    }

    #[test]
    fn a_part_of_a_file_is_read_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        std::fs::write(&path, &content).unwrap();
        let file = || File::open(&path).unwrap();
        assert_eq!(
            read_all(Reader::new(file(), Some(0..1_000_000), Encoding::Identity)),
            content
        );
        assert_eq!(
            read_all(Reader::new(file(), Some(3..500_001), Encoding::Identity)),
            &content[3..500_001]
        );
        assert_eq!(read_all(Reader::new(file(), None, Encoding::Identity)), content);
        let packed = read_all(Reader::new(file(), None, Encoding::Gzip));
        let mut unpacked = Vec::new();
        io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).unwrap();
        assert_eq!(unpacked, content);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"short").unwrap();
        let mut reader = Reader::new(File::open(&path).unwrap(), Some(0..10), Encoding::Identity);
        assert_eq!(reader.next().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn times_that_no_header_can_tell_are_not_told() {
        let after = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let last = http_date(after(253_402_300_799)).unwrap();
        assert_eq!(last, "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(http_date(after(253_402_300_800)), None);
        assert_eq!(
            http_date(SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1)),
            None
        );
    }

    #[test]
    fn names_need_three_notations() {
        assert_eq!(disposition("a.txt"), "inline; filename=a.txt");
        assert_eq!(disposition("a \"b\".txt"), "inline; filename=\"a \\\"b\\\".txt\"");
        assert_eq!(disposition("日.txt"), "inline; filename*=utf-8''%E6%97%A5.txt");
    }

    #[test]
    fn pipes_and_devices_are_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let look = |path: &str| look(path, path);
        assert!(look(path.to_str().unwrap()).is_err());
        assert!(open(path.to_str().unwrap(), "the pipe").is_err());
        assert!(look("/dev/zero").is_err());
        assert!(look("/proc/version").is_ok());
    }
}
