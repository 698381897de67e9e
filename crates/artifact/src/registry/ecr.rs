//! Amazon's registries: a call that is signed with an access key gives a password that lasts for hours.
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use model::Secret;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{AskError, Basic, Client, TRIES_MAX, pause, read};
use crate::images::PullError;
use crate::policy::written;

const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const TYPE: &str = "application/x-amz-json-1.1";
/// A password of ECR's is about 2 KiB.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: Vec<Authorization>,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: String,
}
#[derive(Deserialize, Default)]
struct Complaint {
    #[serde(rename = "__type", default)]
    kind: String,
    #[serde(alias = "Message", default)]
    message: String,
}

/// The password for the registries of a region.
pub(super) async fn password(
    client: &Client,
    access_key: &str,
    secret: &Secret<String>,
    region: &str,
) -> Result<Basic, PullError> {
    let wrong = |why: &str| PullError::Credentials(why.to_owned());
    let is_region = (1..=32).contains(&region.len())
        && region
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_region {
        return Err(wrong("the AWS region is no region's name, like eu-central-1"));
    }
    let is_key = (16..=128).contains(&access_key.len())
        && access_key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_key {
        return Err(wrong("the AWS access key id is none"));
    }
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    let own = format!("https://api.ecr.{region}.{domain}");
    let endpoint = client.policy().ecr_endpoint.as_deref().unwrap_or(&own);
    let (authority, is_plain, prefix) =
        written(endpoint).ok_or_else(|| wrong("ecr_endpoint of the policy is no address"))?;
    let scheme = if is_plain { "http" } else { "https" };
    let path = if prefix.is_empty() {
        "/".to_owned()
    } else {
        format!("/{prefix}/")
    };
    let url: Uri = format!("{scheme}://{authority}{path}")
        .parse()
        .map_err(|_| wrong("ecr_endpoint of the policy is no address"))?;
    let mut tries = 0;
    loop {
        let headers = signed(
            authority,
            &path,
            b"{}",
            access_key,
            secret,
            region,
            SystemTime::now(),
        );
        let asked = ask(client, &url, &headers).await;
        match asked {
            Ok(basic) => return Ok(basic),
            Err(AskError::Never(error)) => return Err(error),
            Err(AskError::Status(status, says)) => {
                return Err(PullError::Credentials(format!(
                    "ECR in {region} refuses the access key: {status} {says}"
                )));
            }
            Err(AskError::Again { why, after, .. }) => {
                tries += 1;
                if tries >= TRIES_MAX {
                    return Err(PullError::Away {
                        registry: authority.to_owned(),
                        why,
                    });
                }
                tokio::time::sleep(pause(tries, after)).await;
            }
        }
    }
}

async fn ask(client: &Client, url: &Uri, headers: &HeaderMap) -> Result<Basic, AskError> {
    let answer = client
        .send(Method::POST, url, headers, Bytes::from_static(b"{}"))
        .await?;
    let status = answer.status();
    let body = read(answer.into_body(), ANSWER_BYTES_MAX).await;
    let body = body.map_err(|_| super::again("the answer of ECR could not be read".to_owned()))?;
    if status.is_server_error() || status.as_u16() == 429 {
        return Err(super::again(format!("ECR: {status}")));
    }
    if !status.is_success() {
        let complaint: Complaint = serde_json::from_slice(&body).unwrap_or_default();
        let says = format!("{}: {}", complaint.kind, complaint.message);
        return Err(AskError::Status(
            status,
            says.chars().filter(|c| !c.is_control()).take(200).collect(),
        ));
    }
    let odd = || {
        AskError::Never(PullError::Odd {
            registry: "ECR".to_owned(),
            why: "its token is none".to_owned(),
        })
    };
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| odd())?;
    let token = &answer
        .authorization_data
        .first()
        .ok_or_else(odd)?
        .authorization_token;
    let pair = STANDARD.decode(token).map_err(|_| odd())?;
    let pair = String::from_utf8(pair).map_err(|_| odd())?;
    let (username, password) = pair.split_once(':').ok_or_else(odd)?;
    Ok(Basic::new(username.to_owned(), Secret::new(password.to_owned())))
}

/// The headers of the call, signed (AWS Signature Version 4).
fn signed(
    host: &str,
    path: &str,
    body: &[u8],
    access_key: &str,
    secret: &Secret<String>,
    region: &str,
    now: SystemTime,
) -> HeaderMap {
    let time = stamp(now);
    let date = &time[..8];
    let names = "content-type;host;x-amz-date;x-amz-target";
    let canonical = format!(
        "POST\n{path}\n\ncontent-type:{TYPE}\nhost:{host}\nx-amz-date:{time}\nx-amz-target:{TARGET}\n\n{names}\n{}",
        hex::encode(Sha256::digest(body))
    );
    let scope = format!("{date}/{region}/ecr/aws4_request");
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        hex::encode(Sha256::digest(canonical))
    );
    let signature = hex::encode(mac(&key(secret.expose(), date, region, "ecr"), &to_sign));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    );
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", TYPE),
        ("x-amz-date", &time),
        ("x-amz-target", TARGET),
        ("authorization", &authorization),
    ] {
        // Letters, digits and marks of our own making.
        if let Ok(mut value) = HeaderValue::from_str(value) {
            value.set_sensitive(name == "authorization");
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn key(secret: &str, date: &str, region: &str, service: &str) -> Vec<u8> {
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [date, region, service, "aws4_request"] {
        key = mac(&key, part);
    }
    key
}

/// `20150830T123600Z`.
fn stamp(now: SystemTime) -> String {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar, counted in eras of 400 years from the first of March of the year 0.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + carry;
    format!(
        "{year:04}{month:02}{date:02}T{:02}{:02}{:02}Z",
        rest / 3600,
        rest % 3600 / 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_amazon_reads_them() {
        let at = |seconds| stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(1_440_938_160), "20150830T123600Z");
        assert_eq!(at(951_782_399), "20000228T235959Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(4_107_542_400), "21000301T000000Z");
    }

    #[test]
    fn the_key_is_the_one_that_amazon_gives_as_an_example() {
        // https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
        let key = key(
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            "20120215",
            "us-east-1",
            "iam",
        );
        assert_eq!(
            hex::encode(key),
            "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"
        );
    }

    #[test]
    fn a_call_names_what_it_signs_and_hides_the_signature() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        let secret = Secret::new("secret".to_owned());
        let headers = signed(
            "api.ecr.us-east-1.amazonaws.com",
            "/",
            b"{}",
            "AKIDEXAMPLE",
            &secret,
            "us-east-1",
            now,
        );
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(authorization.starts_with(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/ecr/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature="
        ));
        assert_eq!(authorization.rsplit('=').next().unwrap().len(), 64);
        assert!(headers["authorization"].is_sensitive());
        let other = signed(
            "api.ecr.us-east-1.amazonaws.com",
            "/",
            b"{}",
            "AKIDEXAMPLE",
            &Secret::new("x".to_owned()),
            "us-east-1",
            now,
        );
        assert_ne!(other["authorization"], headers["authorization"]);
    }
}
