//! The packages of a machine of Debian's kin, as dpkg keeps them in `/var/lib/dpkg`.
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What dpkg knows of all packages.
pub(crate) const STATUS: &str = "var/lib/dpkg/status";
/// Lists of their files, and their scripts.
pub(crate) const INFO: &str = "var/lib/dpkg/info";
/// Names that lead into `/usr` where it is merged.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Packages that are installed.
#[derive(Debug)]
pub(crate) struct Packages {
    /// As they are told, in order.
    known: Vec<Package>,
    /// By their names and by what they stand for.
    by_name: HashMap<String, Vec<usize>>,
}

#[derive(Debug)]
struct Package {
    name: String,
    /// What dpkg knows of it, without an empty line after it.
    told: String,
    /// Whether a machine needs it whatever it does.
    is_basic: bool,
    /// Each by names of which one is enough.
    needs: Vec<Vec<String>>,
}

impl Packages {
    /// Of what dpkg knows.
    pub(crate) fn parse(status: &str) -> Self {
        let mut packages = Self {
            known: Vec::new(),
            by_name: HashMap::new(),
        };
        for told in status
            .split("\n\n")
            .map(str::trim)
            .filter(|told| !told.is_empty())
        {
            let Some(name) = field(told, "Package") else {
                continue;
            };
            if field(told, "Status").is_none_or(|status| !status.ends_with(" installed")) {
                continue;
            }
            let number = packages.known.len();
            let stands_for = clauses(field(told, "Provides"));
            for name in [name.to_owned()]
                .into_iter()
                .chain(stands_for.into_iter().flatten())
            {
                packages.by_name.entry(name).or_default().push(number);
            }
            let mut needs = clauses(field(told, "Pre-Depends"));
            needs.extend(clauses(field(told, "Depends")));
            packages.known.push(Package {
                name: name.to_owned(),
                told: told.to_owned(),
                is_basic: field(told, "Essential") == Some("yes")
                    || matches!(field(told, "Priority"), Some("required")),
                needs,
            });
        }
        packages
    }

    /// Those that every machine needs, those that `wanted` says, and all that these need.
    pub(crate) fn needed(&self, wanted: impl Fn(&str) -> bool) -> Chosen<'_> {
        let first = self.known.iter().enumerate();
        let mut open: Vec<usize> = first
            .filter(|(_, package)| package.is_basic || wanted(&package.name))
            .map(|(number, _)| number)
            .collect();
        let mut chosen: BTreeSet<usize> = open.iter().copied().collect();
        while let Some(number) = open.pop() {
            for names in &self.known[number].needs {
                let one = names.iter().find_map(|name| self.by_name.get(name));
                // Of several architectures, or several that stand for it, the machine uses all.
                for needed in one.into_iter().flatten() {
                    if chosen.insert(*needed) {
                        open.push(*needed);
                    }
                }
            }
        }
        Chosen(chosen.into_iter().map(|number| &self.known[number]).collect())
    }
}

/// Some of the packages.
#[derive(Debug)]
pub(crate) struct Chosen<'a>(Vec<&'a Package>);

impl Chosen<'_> {
    /// What dpkg is to know where there are no others.
    pub(crate) fn status(&self) -> String {
        self.0
            .iter()
            .flat_map(|package| [package.told.as_str(), "\n\n"])
            .collect()
    }

    /// Whether a file of [`INFO`] is about one of them: `name.list`, `name:amd64.list`.
    pub(crate) fn has_info(&self, file: &str) -> bool {
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
        let name = stem.split_once(':').map_or(stem, |(name, _)| name);
        self.0.iter().any(|package| package.name == name) || name == "format"
    }

    /// Their files below `/usr`, as paths of a root, in order: what a directory holds comes after it.
    pub(crate) fn files(&self, root: &Path) -> io::Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(root.join(INFO))? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if name.ends_with(".list") && self.has_info(&name) {
                let list = fs::read_to_string(entry.path())?;
                files.extend(list.lines().filter_map(below_usr));
            }
        }
        Ok(files)
    }
}

/// Names of the packages to which one of `paths` belongs.
pub(crate) fn owners(root: &Path, paths: &BTreeSet<PathBuf>) -> io::Result<BTreeSet<String>> {
    let mut owners = BTreeSet::new();
    for entry in fs::read_dir(root.join(INFO))? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let Some(stem) = name.strip_suffix(".list") else {
            continue;
        };
        let list = fs::read_to_string(entry.path())?;
        if list
            .lines()
            .filter_map(below_usr)
            .any(|path| paths.contains(&path))
        {
            owners.insert(stem.split_once(':').map_or(stem, |(name, _)| name).to_owned());
        }
    }
    Ok(owners)
}

/// A line of a list as a path of a root, where it lies in `/usr`.
fn below_usr(line: &str) -> Option<PathBuf> {
    let path = line.strip_prefix('/')?;
    let first = path.split('/').next()?;
    match first {
        "usr" => Some(path.into()),
        merged if MERGED.contains(&merged) => Some(Path::new("usr").join(path)),
        _ => None,
    }
}

/// A field of one line.
fn field<'a>(told: &'a str, name: &str) -> Option<&'a str> {
    told.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value.trim())
}

/// `a (>= 1) | b, c:any` as names: of each clause one is enough.
fn clauses(field: Option<&str>) -> Vec<Vec<String>> {
    let name = |one: &str| {
        let name = one.split_whitespace().next().unwrap_or_default();
        name.split_once(':').map_or(name, |(name, _)| name).to_owned()
    };
    field
        .unwrap_or_default()
        .split(',')
        .map(|clause| {
            clause
                .split('|')
                .map(name)
                .filter(|name| !name.is_empty())
                .collect()
        })
        .filter(|names: &Vec<_>| !names.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: base-files\nEssential: yes\nStatus: install ok installed\nPre-Depends: awk\n\n\
        Package: mawk\nStatus: install ok installed\nProvides: awk\nDepends: libc6 (>= 2.36)\n\n\
        Package: libc6\nStatus: install ok installed\nArchitecture: amd64\n\n\
        Package: python3\nStatus: install ok installed\nDepends: gone (>= 1) | python3.11:any, libc6\n\n\
        Package: python3.11\nStatus: install ok installed\n\n\
        Package: gone\nStatus: deinstall ok config-files\n\n\
        Package: llvm\nStatus: install ok installed\nDepends: libc6\n";

    #[test]
    fn what_is_chosen_is_what_is_wanted_and_what_that_needs() {
        let packages = Packages::parse(STATUS);
        let names = |chosen: &Chosen<'_>| -> Vec<String> {
            chosen.0.iter().map(|package| package.name.clone()).collect()
        };
        let basic = packages.needed(|_| false);
        assert_eq!(names(&basic), ["base-files", "mawk", "libc6"]);
        let more = packages.needed(|name| name == "python3");
        assert_eq!(
            names(&more),
            ["base-files", "mawk", "libc6", "python3", "python3.11"]
        );
        assert!(more.has_info("libc6:amd64.list") && more.has_info("python3.11.postinst"));
        assert!(!more.has_info("llvm.list") && !more.has_info("python3.11-doc.list"));
        let again = Packages::parse(&more.status());
        assert_eq!(names(&again.needed(|_| true)), names(&more));
    }

    #[test]
    fn files_of_a_merged_usr_are_found_whatever_they_are_called() {
        let root = tempfile::tempdir().unwrap();
        let info = root.path().join(INFO);
        fs::create_dir_all(&info).unwrap();
        fs::write(info.join("mawk.list"), "/.\n/usr\n/usr/bin/mawk\n/etc/mawk\n").unwrap();
        fs::write(info.join("libc6:amd64.list"), "/lib64/ld.so\n/lib/../x\n").unwrap();
        fs::write(info.join("llvm.list"), "/usr/bin/llvm\n").unwrap();
        let packages = Packages::parse(STATUS);
        let files = packages.needed(|_| false).files(root.path()).unwrap();
        let files: Vec<_> = files.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(files, ["usr", "usr/bin/mawk", "usr/lib/../x", "usr/lib64/ld.so"]);
        let wanted = [PathBuf::from("usr/bin/llvm"), PathBuf::from("usr/lib64/ld.so")];
        let owners = owners(root.path(), &wanted.into()).unwrap();
        assert_eq!(owners.into_iter().collect::<Vec<_>>(), ["libc6", "llvm"]);
    }
}
