//! What a run is asked for.
use anyhow::{Context as _, Result, bail, ensure};

use crate::figures::Figures;
use crate::scale::Scale;

/// The arguments of a run.
pub(crate) struct Options {
    pub(crate) scale: Scale,
    /// What is to be measured, in its order.
    pub(crate) parts: Vec<&'static str>,
    /// Files that get the figures as JSON.
    json: Vec<String>,
}

impl Options {
    /// Reads them; `all` are the parts that there are. Without `--only` all are meant.
    pub(crate) fn parse(arguments: &[String], all: &[&'static str]) -> Result<Self> {
        let (mut scale, mut only, mut json) = (Scale::WHOLE, Vec::new(), Vec::new());
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--short" => scale = Scale::SHORT,
                "--json" => json.push(value()?.clone()),
                "--only" => {
                    let part = value()?.as_str();
                    ensure!(
                        all.contains(&part),
                        "there is no part {part}; there are {}",
                        all.join(", ")
                    );
                    only.push(part);
                }
                other => bail!("{other} is not understood: there are --short, --only PART and --json FILE"),
            }
        }
        let is_wanted = |part: &&&str| only.is_empty() || only.contains(part);
        Ok(Self {
            scale,
            parts: all.iter().filter(is_wanted).copied().collect(),
            json,
        })
    }

    /// Prints the table, and writes it where it is wanted as JSON.
    pub(crate) fn tell(&self, figures: &Figures) -> Result<()> {
        println!("{}", figures.table());
        for path in &self.json {
            std::fs::write(path, serde_json::to_vec_pretty(&figures.json())?)
                .with_context(|| format!("cannot write {path}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Options::parse(&words, &["one", "two", "three"])
    }

    #[test]
    fn parts_come_in_their_order_and_all_where_none_is_named() {
        assert_eq!(parse(&[]).unwrap().parts, ["one", "two", "three"]);
        let some = parse(&["--only", "three", "--short", "--only", "one"]).unwrap();
        assert_eq!(some.parts, ["one", "three"]);
        assert!(!some.scale.whole);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (words, said) in [
            (&["--only", "four"][..], "no part four"),
            (&["--only"], "needs a value"),
            (&["--shrot"], "--shrot is not understood"),
        ] {
            let error = parse(words).err().expect("it is refused").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
