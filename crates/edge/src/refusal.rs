//! What the edge itself answers (contract 1.3, 1.5).
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use ports::WakeRefused;
use serde_json::{Value, json};
use wire::host::HostRefused;

use crate::body::Body;
use crate::lines::LINES_MAX;
use crate::signed::Unsigned;

/// The header that carries a sandbox's traffic token.
pub(crate) const TRAFFIC_TOKEN: &str = "e2b-traffic-access-token";

/// Why a request is answered by the edge instead of a sandbox. Clients match on parts of the texts: `was not found`
/// and `port is not open` decide what the SDKs raise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The host and the headers name no sandbox.
    #[error(transparent)]
    Target(#[from] HostRefused),
    /// A file URL that nobody signed.
    #[error(transparent)]
    Unsigned(#[from] Unsigned),
    /// One of envd's control paths.
    #[error("This path is not available")]
    Control { path: String },
    /// Tunnels are not this proxy's trade.
    #[error("The method CONNECT is not supported")]
    Connect,
    /// Unknown, killed, or paused for good.
    #[error("The sandbox was not found")]
    NotFound { sandbox: String },
    /// Nothing answers there.
    #[error("The sandbox is running but port is not open")]
    PortClosed { sandbox: String, port: u16 },
    /// Private ingress.
    #[error("Sandbox is secured with traffic access token. Token header '{TRAFFIC_TOKEN}' is missing")]
    TokenMissing { sandbox: String },
    /// Private ingress.
    #[error(
        "Sandbox is secured with traffic access token. Provided token in header '{TRAFFIC_TOKEN}' is invalid"
    )]
    TokenWrong { sandbox: String },
    /// It would be resumed for somebody else.
    #[error(
        "This sandbox can't be resumed with the credentials provided. Send the access token that was returned \
         when it was created"
    )]
    Denied { sandbox: String },
    /// On its way into or out of a pause for too long.
    #[error("The sandbox is still transitioning. Try again in a moment.")]
    Transitioning { sandbox: String },
    /// A limit of its team.
    #[error("{why}")]
    Exhausted { sandbox: String, why: String },
    /// It has as many connections as it may have.
    #[error("The sandbox has too many connections")]
    Crowded { sandbox: String },
    /// It did not come up.
    #[error("The sandbox could not be resumed")]
    NotResumed { sandbox: String },
    /// The catalog does not answer.
    #[error("The sandbox cannot be looked up at the moment")]
    Blind { sandbox: String },
    /// The API behind `api.<domain>` does not answer.
    #[error("The API is not reachable")]
    ApiAway,
}

impl Refusal {
    pub(crate) fn of_wake(refused: WakeRefused, sandbox: String) -> Self {
        match refused {
            WakeRefused::NotFound => Refusal::NotFound { sandbox },
            WakeRefused::Denied => Refusal::Denied { sandbox },
            WakeRefused::Transitioning => Refusal::Transitioning { sandbox },
            WakeRefused::Exhausted(why) => Refusal::Exhausted { sandbox, why },
            WakeRefused::Failed => Refusal::NotResumed { sandbox },
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Refusal::Target(refused) => {
                StatusCode::from_u16(refused.status()).unwrap_or(StatusCode::BAD_REQUEST)
            }
            Refusal::Unsigned(_) => StatusCode::UNAUTHORIZED,
            Refusal::Control { .. } => StatusCode::NOT_FOUND,
            Refusal::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::TokenMissing { .. } | Refusal::TokenWrong { .. } | Refusal::Denied { .. } => {
                StatusCode::FORBIDDEN
            }
            Refusal::Transitioning { .. } => StatusCode::CONFLICT,
            Refusal::Exhausted { .. } | Refusal::Crowded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Blind { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::NotFound { .. }
            | Refusal::PortClosed { .. }
            | Refusal::NotResumed { .. }
            | Refusal::ApiAway => StatusCode::BAD_GATEWAY,
        }
    }

    /// A short name, for the metrics.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Refusal::Target(HostRefused::Foreign(_)) | Refusal::NotFound { .. } => "not_found",
            Refusal::Target(_) | Refusal::Connect => "bad_target",
            Refusal::Unsigned(_) => "unsigned",
            Refusal::Control { .. } => "control_path",
            Refusal::PortClosed { .. } => "port_closed",
            Refusal::TokenMissing { .. } | Refusal::TokenWrong { .. } => "token",
            Refusal::Denied { .. } => "denied",
            Refusal::Transitioning { .. } => "transitioning",
            Refusal::Exhausted { .. } => "exhausted",
            Refusal::Crowded { .. } => "crowded",
            Refusal::NotResumed { .. } => "not_resumed",
            Refusal::Blind { .. } => "blind",
            Refusal::ApiAway => "api_away",
        }
    }

    /// The answer, in the form that the asker reads best.
    pub(crate) fn answer(&self, asker: &Asker) -> Response<Body> {
        let (kind, text) = match (self.shape(), asker.form()) {
            (Shape::Text, _) => ("text/plain; charset=utf-8", self.to_string()),
            (Shape::Json(value), _) | (Shape::Either(value), Form::Json) => {
                ("application/json; charset=utf-8", value.to_string())
            }
            (Shape::Either(_), Form::Html) => ("text/html; charset=utf-8", self.page()),
        };
        let mut response = Response::new(Body::text(Bytes::from(text)));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        response
    }

    fn shape(&self) -> Shape {
        let (code, message) = (self.status().as_u16(), self.to_string());
        let of = |sandbox: &String| json!({"sandboxId": sandbox, "message": message, "code": code});
        match self {
            Refusal::Target(HostRefused::Foreign(sandbox)) => Shape::Either(of(sandbox)),
            Refusal::Target(_) | Refusal::Connect => Shape::Text,
            Refusal::Unsigned(_) | Refusal::ApiAway => Shape::Json(json!({"code": code, "message": message})),
            Refusal::Control { path } => Shape::Json(json!({"message": message, "path": path, "code": code})),
            Refusal::PortClosed { sandbox, port } => {
                let mut value = of(sandbox);
                value["port"] = json!(port);
                Shape::Either(value)
            }
            Refusal::Crowded { sandbox } => {
                let mut value = of(sandbox);
                value["connectionLimit"] = json!(LINES_MAX);
                Shape::Either(value)
            }
            Refusal::NotFound { sandbox }
            | Refusal::TokenMissing { sandbox }
            | Refusal::TokenWrong { sandbox }
            | Refusal::Denied { sandbox }
            | Refusal::Transitioning { sandbox }
            | Refusal::Exhausted { sandbox, .. }
            | Refusal::NotResumed { sandbox }
            | Refusal::Blind { sandbox } => Shape::Either(of(sandbox)),
        }
    }

    fn page(&self) -> String {
        let status = self.status();
        let message = escaped(&self.to_string());
        let about = match self {
            Refusal::PortClosed { sandbox, port } => {
                format!(
                    "Sandbox <code>{}</code>, port <code>{port}</code>",
                    escaped(sandbox)
                )
            }
            Refusal::Target(HostRefused::Foreign(sandbox))
            | Refusal::NotFound { sandbox }
            | Refusal::TokenMissing { sandbox }
            | Refusal::TokenWrong { sandbox }
            | Refusal::Denied { sandbox }
            | Refusal::Transitioning { sandbox }
            | Refusal::Exhausted { sandbox, .. }
            | Refusal::Crowded { sandbox }
            | Refusal::NotResumed { sandbox }
            | Refusal::Blind { sandbox } => format!("Sandbox <code>{}</code>", escaped(sandbox)),
            _ => String::new(),
        };
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{code} {message}</title>\
             <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem}}\
             </style></head>\n<body><h1>{code}</h1><p>{message}</p><p>{about}</p></body></html>\n",
            code = status.as_u16(),
        )
    }
}

enum Shape {
    Text,
    Json(Value),
    /// JSON for programs, a page for people.
    Either(Value),
}

/// What a request tells about who reads the answer: kept, for the request itself is soon on its way.
#[derive(Debug, Default)]
pub(crate) struct Asker {
    accept: Option<HeaderValue>,
    mode: Option<HeaderValue>,
    agent: Option<HeaderValue>,
    from_xhr: bool,
}

/// What the asker can read.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Json,
    Html,
}

impl Asker {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self {
            accept: headers.get(ACCEPT).cloned(),
            mode: headers.get("sec-fetch-mode").cloned(),
            agent: headers.get(USER_AGENT).cloned(),
            from_xhr: headers.contains_key("x-requested-with"),
        }
    }

    /// The rule of contract 1.5.
    fn form(&self) -> Form {
        let text = |value: &Option<HeaderValue>| {
            let text = value.as_ref().and_then(|value| value.to_str().ok());
            text.unwrap_or_default().to_ascii_lowercase()
        };
        let (accept, mode, agent) = (text(&self.accept), text(&self.mode), text(&self.agent));
        let wants_json = accept.contains("application/json") && !accept.contains("text/html");
        let from_script = ["cors", "no-cors", "same-origin", "websocket"].contains(&mode.as_str());
        let from_xhr = self.from_xhr && mode != "navigate";
        let browsers = ["mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"];
        if wants_json || from_script || from_xhr {
            Form::Json
        } else if browsers.iter().any(|browser| agent.contains(browser)) {
            Form::Html
        } else {
            Form::Json
        }
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(headers: &[(&'static str, &'static str)]) -> Form {
        let headers = headers.iter().map(|&(name, value)| {
            (
                http::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        Asker::of(&headers.collect()).form()
    }

    #[test]
    fn programs_read_json_and_people_a_page() {
        let firefox = ("user-agent", "Mozilla/5.0 (X11) Firefox/140");
        assert_eq!(form(&[]), Form::Json);
        assert_eq!(form(&[("user-agent", "e2b-python-sdk/2.63")]), Form::Json);
        assert_eq!(form(&[firefox]), Form::Html);
        assert_eq!(
            form(&[firefox, ("accept", "text/html,application/json")]),
            Form::Html
        );
        assert_eq!(form(&[firefox, ("accept", "application/json")]), Form::Json);
        for mode in ["cors", "no-cors", "same-origin", "websocket"] {
            assert_eq!(form(&[firefox, ("sec-fetch-mode", mode)]), Form::Json, "{mode}");
        }
        assert_eq!(form(&[firefox, ("sec-fetch-mode", "navigate")]), Form::Html);
        assert_eq!(
            form(&[firefox, ("x-requested-with", "XMLHttpRequest")]),
            Form::Json
        );
        assert_eq!(
            form(&[firefox, ("x-requested-with", "x"), ("sec-fetch-mode", "navigate")]),
            Form::Html
        );
    }

    #[tokio::test]
    async fn a_crowded_sandbox_tells_its_limit() {
        use http_body_util::BodyExt as _;
        let crowded = Refusal::Crowded { sandbox: "i".into() };
        let (parts, body) = crowded.answer(&Asker::default()).into_parts();
        let body = body.collect().await.expect("a text").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let message = "The sandbox has too many connections";
        let expected =
            json!({"sandboxId": "i", "message": message, "code": 429, "connectionLimit": LINES_MAX});
        assert_eq!((parts.status.as_u16(), body), (429, expected));
    }

    #[test]
    fn a_page_escapes_what_it_shows() {
        let page = Refusal::Exhausted {
            sandbox: "i".into(),
            why: "<script>'\"&".into(),
        }
        .page();
        assert!(page.contains("&lt;script&gt;&#39;&quot;&amp;") && !page.contains("<script>"));
    }

    #[test]
    fn the_texts_that_clients_look_for_are_there() {
        let sandbox = String::from("i");
        let closed = Refusal::PortClosed {
            sandbox: sandbox.clone(),
            port: 80,
        };
        assert!(closed.to_string().contains("port is not open"));
        let gone = Refusal::NotFound { sandbox };
        assert!(gone.to_string().contains("was not found"));
        assert_eq!((closed.status().as_u16(), gone.status().as_u16()), (502, 502));
    }
}
