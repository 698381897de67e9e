use std::collections::BTreeMap;

use model::Secret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::logs::LogLevel;
use super::object::{object, objects};

/// A build that is to be registered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NewBuild {
    /// `[namespace/]name[:tag]`; the namespace is the team's own.
    pub name: Option<String>,
    /// The name, as older clients write it.
    pub alias: Option<String>,
    /// What is to name the build when it is ready; `default` where neither these nor the name give a tag.
    pub tags: Option<Vec<String>>,
    /// The team of the key, if any is named.
    #[serde(rename = "teamID")]
    pub team_id: Option<String>,
    /// vCPUs of its sandboxes: 1, or an even number up to 32; 2 by default.
    #[schema(minimum = 1, maximum = 32)]
    pub cpu_count: Option<i64>,
    /// MiB, even and at least 128; 1024 by default.
    #[serde(rename = "memoryMB")]
    #[schema(minimum = 128, maximum = 1048576, multiple_of = 2)]
    pub memory_mb: Option<i64>,
    /// MiB that are to be free in its sandboxes.
    #[serde(rename = "minFreeDiskMb")]
    #[schema(minimum = 0, maximum = 1048576)]
    pub min_free_disk_mb: Option<i64>,
}

/// A build that was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegisteredBuild {
    /// The template's id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build's id.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Whether other teams may use the template.
    pub public: bool,
    /// The template's names, with the namespace.
    pub names: Vec<String>,
    /// What is to name the build.
    pub tags: Vec<String>,
    /// The template's names, without the namespace.
    pub aliases: Vec<String>,
}

/// What a build is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StartBuild {
    /// The image that it starts from; not together with `fromTemplate`.
    pub from_image: Option<String>,
    /// The template that it starts from: `[namespace/]name[:tag]`, or an id.
    pub from_template: Option<String>,
    /// Who asks the image's registry.
    #[serde(deserialize_with = "object")]
    pub from_image_registry: Option<Registry>,
    /// Runs in its sandboxes from the start on.
    pub start_cmd: Option<String>,
    /// Says by its exit code that the start command has come up.
    pub ready_cmd: Option<String>,
    /// Nothing is taken from the cache.
    pub force: Option<bool>,
    /// What is done to it, in this order.
    #[serde(deserialize_with = "objects")]
    pub steps: Option<Vec<TemplateStep>>,
}

/// Credentials of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Registry {
    /// A name and a password.
    #[serde(rename = "registry")]
    Basic {
        /// The name.
        username: String,
        /// The password.
        #[schema(value_type = String)]
        password: Secret<String>,
    },
    /// Amazon ECR.
    Aws {
        /// Access key.
        #[serde(rename = "awsAccessKeyId")]
        access_key_id: String,
        /// Its secret.
        #[serde(rename = "awsSecretAccessKey")]
        #[schema(value_type = String)]
        secret_access_key: Secret<String>,
        /// Where the registry is.
        #[serde(rename = "awsRegion")]
        region: String,
    },
    /// Google Artifact Registry.
    Gcp {
        /// A service account's key file.
        #[serde(rename = "serviceAccountJson")]
        #[schema(value_type = String)]
        service_account_json: Secret<String>,
    },
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateStep {
    /// `COPY`, `ADD`, `RUN`, `ENV`, `ARG`, `WORKDIR` or `USER`, in any case.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Of `COPY` and `ADD`: the upload, by its hash.
    #[serde(default)]
    pub files_hash: Option<String>,
    /// Neither this step nor any after it is taken from the cache.
    #[serde(default)]
    pub force: Option<bool>,
}

/// Where to upload the files of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileUpload {
    /// Whether they are there already.
    pub present: bool,
    /// Where a tar is put, with its `Content-Length` and without a key.
    pub url: String,
    /// What the upload must carry; empty here.
    pub headers: BTreeMap<String, String>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    /// It was registered, and not started.
    Waiting,
    /// It is under way.
    Building,
    /// Sandboxes start from it.
    Ready,
    /// It has ended without a result.
    Error,
}

/// A line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildEntry {
    /// RFC 3339.
    pub timestamp: String,
    /// How much it matters.
    pub level: LogLevel,
    /// What was said.
    pub message: String,
    /// By which part of the build: `base`, the number of a step from 1, `finalize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildReason {
    /// What happened, to what, and what to do.
    pub message: String,
    /// In which part of the build: `base`, the number of a step from 1, `finalize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Lines that tell of it.
    pub log_entries: Vec<BuildEntry>,
}

/// How far a build is, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildInfo {
    /// The template's id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build's id.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// How far it is.
    pub status: BuildStatus,
    /// Lines from `logsOffset` on.
    pub log_entries: Vec<BuildEntry>,
    /// Their texts.
    pub logs: Vec<String>,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<BuildReason>,
}

/// Lines of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildLogs {
    /// In the asked order.
    pub logs: Vec<BuildEntry>,
}

#[cfg(test)]
mod tests {
    use super::super::Object;
    use super::*;

    fn parsed(json: &str) -> Result<StartBuild, serde_json::Error> {
        serde_json::from_str(json).map(|Object(body)| body)
    }

    #[test]
    fn credentials_are_read_by_their_type_and_not_printed() {
        let build = parsed(
            r#"{"fromImage":"a","fromImageRegistry":{"type":"registry","username":"u","password":"hunter2"}}"#,
        );
        let build = build.unwrap();
        assert!(
            matches!(&build.from_image_registry, Some(Registry::Basic { username, .. }) if username == "u")
        );
        assert!(!format!("{build:?}").contains("hunter2"));
        let aws = r#"{"fromImageRegistry":{"type":"aws","awsAccessKeyId":"a","awsSecretAccessKey":"b","awsRegion":"c"}}"#;
        assert!(matches!(
            parsed(aws).unwrap().from_image_registry,
            Some(Registry::Aws { .. })
        ));
        let gcp = r#"{"fromImageRegistry":{"type":"gcp","serviceAccountJson":"{}"}}"#;
        assert!(matches!(
            parsed(gcp).unwrap().from_image_registry,
            Some(Registry::Gcp { .. })
        ));
        assert!(parsed(r#"{"fromImageRegistry":{"type":"azure"}}"#).is_err());
        assert!(parsed(r#"{"fromImageRegistry":["gcp","{}"]}"#).is_err());
    }

    #[test]
    fn what_clients_send_beside_the_protocol_is_passed_over() {
        let step = r#"{"steps":[{"type":"RUN","args":["a"],"force":false,"forceUpload":null}],"force":null}"#;
        assert_eq!(parsed(step).unwrap().steps.unwrap()[0].kind, "RUN");
        assert_eq!(parsed(r#"{"steps":null}"#).unwrap(), StartBuild::default());
        assert!(parsed(r#"{"steps":[["RUN"]]}"#).is_err());
    }
}
