//! The documents say what is: their examples are read by the product, their links lead somewhere, the commands and
//! messages that they name exist.

mod documents;

use anyhow::{Context, Result};
use documents::{Document, blocks, document, documents, read, root};
use portcullis_common::endpoint::Endpoint;
use portcullis_common::job_context::{ContextError, JobContext};
use portcullis_common::policy::parse_documents;
use portcullis_common::report::Report;
use portcullis_common::resolution::{HostDefaults, PolicySet};
use portcullis_common::store_client::directory::DirectoryStore;
use portcullis_common::wire::{decode_answer, decode_request};
use portcullis_tests::binaries;
use portcullis_tests::patience::wait_for;
use portcullis_tests::policy_server::FIRST_TOKEN;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut checked = 0;
    for document in documents()? {
        for link in document.prose().flat_map(|line| line.split("](").skip(1)) {
            let target = link.split(')').next().unwrap_or_default();
            if target.starts_with("https://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let directory = document.path.parent().unwrap_or_else(|| Path::new(""));
            let path = if file.is_empty() { document.path.clone() } else { directory.join(file) };
            let place = format!("{}: {target}", document.path.display());
            assert!(root().join(&path).exists(), "{place} leads nowhere");
            if !anchor.is_empty() {
                let anchors = Document { text: read(&path)?, path }.anchors();
                assert!(anchors.contains(anchor), "{place}: no such heading in {anchors:?}");
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links were found");
    Ok(())
}

#[test]
fn paths_in_the_text_exist() -> Result<()> {
    let folders = ["common/", "monitor/", "pre-job/", "post-job/", "tests/", "docs/", "scripts/"];
    let mut checked = 0;
    for document in documents()? {
        // GitHub's own list says where it follows somebody else's page.
        for path in document.prose().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let path = path.split(' ').next().unwrap_or_default();
            if folders.iter().any(|folder| path.starts_with(folder)) || path.starts_with("deploy/")
            {
                assert!(root().join(path).exists(), "{}: {path}", document.path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} paths were found");
    Ok(())
}

#[test]
fn policies_are_policies() -> Result<()> {
    for block in blocks("yaml", 3)? {
        let documents = parse_documents(&block.place, block.text.as_bytes())
            .map_err(|errors| anyhow::anyhow!("{}\n{errors}", block.place))?;
        PolicySet::new(documents).map_err(|errors| anyhow::anyhow!("{}\n{errors}", block.place))?;
    }
    Ok(())
}

#[test]
fn every_key_of_a_policy_is_described() -> Result<()> {
    let schema: Value = serde_json::from_str(&read("docs/schemas/policy.json")?)?;
    let keys = schema["properties"].as_object().context("the schema has no properties")?;
    let described = document("docs/policy.md")?.table("key");
    let described: BTreeSet<&str> = described.iter().map(String::as_str).collect();
    assert_eq!(described, keys.keys().map(String::as_str).collect());
    Ok(())
}

#[test]
fn endpoints_are_taken_and_refused_as_described() -> Result<()> {
    let policy = document("docs/policy.md")?;
    let (taken, refused) = (policy.table("endpoint"), policy.table("refused"));
    assert!(taken.len() > 8 && refused.len() > 5, "{taken:?} {refused:?}");
    for text in taken {
        text.parse::<Endpoint>().with_context(|| text.clone())?;
    }
    for text in refused {
        assert!(text.parse::<Endpoint>().is_err(), "{text}");
    }
    Ok(())
}

#[test]
fn the_explanation_is_the_one_of_the_example_policies() -> Result<()> {
    let policies = DirectoryStore::open(root().join("docs/examples/policies"))?
        .current()
        .map_err(|errors| anyhow::anyhow!("{errors}"))?;
    let host = HostDefaults { cluster: Some("prod-linux".to_owned()), ..HostDefaults::default() };
    let context = JobContext {
        repository: "octo/hello".to_owned(),
        workflow_ref: "octo/hello/.github/workflows/any.yml@refs/heads/main".to_owned(),
        ..JobContext::default()
    };
    let resolution = policies.resolve(&context, &host)?;
    let shown = read("docs/policy.md")?;
    let version = format!("policy {} ({})", resolution.policy.name, resolution.policy.version);
    assert!(shown.contains(&version), "{version} is not what the document shows");
    for considered in resolution.considered {
        let line = shown
            .lines()
            .find(|line| line.contains(&considered.target) && line.ends_with(&considered.reason));
        assert!(line.is_some(), "{considered:?} is not shown");
    }
    Ok(())
}

#[test]
fn requests_and_answers_are_those_of_the_protocol() -> Result<()> {
    for block in blocks("json request", 4)? {
        if let Err(refusal) = decode_request(block.text.as_bytes()) {
            panic!("{}: {}", block.place, refusal.message);
        }
    }
    for block in blocks("json answer", 4)? {
        decode_answer(block.text.as_bytes()).with_context(|| block.place.clone())?;
    }
    Ok(())
}

#[test]
fn events_and_reports_fit_their_schemas() -> Result<()> {
    for (info, schema, least) in
        [("json event", "event.json", 3), ("json report", "report.json", 1)]
    {
        let schema: Value = serde_json::from_str(&read(Path::new("docs/schemas").join(schema))?)?;
        let validator = jsonschema::validator_for(&schema)?;
        for block in blocks(info, least)? {
            let value: Value = serde_json::from_str(&block.text)?;
            let errors: Vec<String> =
                validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", block.place);
        }
    }
    for block in blocks("json report", 1)? {
        serde_json::from_str::<Report>(&block.text)?;
    }
    Ok(())
}

#[test]
fn every_detection_is_described() -> Result<()> {
    let schema = read("docs/schemas/event.json")?;
    let text = read("docs/events.md")?;
    let schema: Value = serde_json::from_str(&schema)?;
    let mut names = Vec::new();
    for kind in ["RecordedDetection", "LockdownDetection"] {
        let types = schema["$defs"][kind]["oneOf"].as_array().context("no such definition")?;
        names.extend(types.iter().filter_map(|one| one["const"].as_str()));
    }
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        assert!(text.contains(&format!("`{name}`")), "{name} is not described");
    }
    Ok(())
}

#[test]
fn configurations_are_taken_by_the_monitor() -> Result<()> {
    let monitor = binaries::find("monitor")?;
    let mut texts: Vec<(String, String)> =
        blocks("toml", 2)?.into_iter().map(|block| (block.place, block.text)).collect();
    for file in ["docs/examples/monitor.toml", "deploy/monitor.toml"] {
        texts.push((file.to_owned(), read(file)?));
    }
    let manifest = "deploy/kubernetes/runners/configuration.yaml";
    let parsed: Value = serde_saphyr::from_str(&read(manifest)?)?;
    let text = parsed["data"]["monitor.toml"].as_str().context("no monitor.toml")?;
    texts.push((manifest.to_owned(), text.to_owned()));
    for (place, text) in texts {
        let host = tempfile::tempdir()?;
        let directory = host.path().join("etc/portcullis");
        fs::create_dir_all(directory.join("policies"))?;
        let file = directory.join("monitor.toml");
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        let output = Command::new(&monitor)
            .arg("--root")
            .arg(host.path())
            .args(["check", "--json"])
            .output()?;
        let check: Value = serde_json::from_slice(&output.stdout)?;
        let features = check["features"].as_array().context("no features")?;
        let configuration = features.iter().find(|feature| feature["name"] == "configuration");
        let state = configuration.map(|feature| &feature["state"]);
        assert_eq!(state, Some(&Value::from("active")), "{place}: {configuration:?}");
    }
    Ok(())
}

/// Programs of others that documents name.
const FOREIGN_COMMANDS: [&str; 3] = ["systemctl", "journalctl", "nft"];

/// How a new user builds and starts the server.
const SERVER_BY_CARGO: [&str; 6] =
    ["cargo", "run", "--release", "--package", "portcullis-store", "--"];

/// A program that is killed with its handle.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_server_starts_by_the_readme_s_command_and_prints_a_token_that_is_good() -> Result<()> {
    let readme = document("README.md")?;
    let start = format!("$ {} serve ", SERVER_BY_CARGO.join(" "));
    let commands: Vec<&str> = readme.text.lines().filter(|line| line.starts_with(&start)).collect();
    let [command] = commands.as_slice() else { panic!("{commands:?}") };
    let arguments = command.split(' ').skip(SERVER_BY_CARGO.len() + 1);
    let portcullis = binaries::find("portcullis")?;
    let place = tempfile::tempdir()?;
    let (address, token) = (place.path().join("address"), place.path().join("token"));
    let log = fs::File::create(place.path().join("log"))?;
    // But for the port, which is any that is free, and a configuration that this machine may have.
    let mut server = Running(
        Command::new(&portcullis)
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--address-file"])
            .arg(&address)
            .env_clear()
            .current_dir(place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?,
    );
    let mut printed = String::new();
    BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut printed)?;
    let said = || fs::read_to_string(place.path().join("log")).unwrap_or_default();
    let secret = printed.trim_end().strip_prefix(FIRST_TOKEN);
    fs::write(&token, secret.with_context(|| format!("{printed}{}", said()))?)?;
    wait_for("the server to listen", || address.exists().then_some(())).with_context(said)?;
    let client = |arguments: &[&str]| {
        let output = Command::new(&portcullis)
            .args(arguments)
            .args(["--server", &format!("http://{}", fs::read_to_string(&address)?)])
            .arg("--token-file")
            .arg(&token)
            .env_clear()
            .output()?;
        let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        anyhow::Ok((output.status.success(), text))
    };
    // Only an admin may look at tokens.
    let (is_good, tokens) = client(&["token", "list"])?;
    assert!(is_good && tokens.contains("admin"), "{tokens}\n{}", said());
    fs::write(&token, "another")?;
    let (is_good, refused) = client(&["token", "list"])?;
    assert!(!is_good, "{refused}");
    // Where it listens when nothing is said; `store.toml` has the same words.
    let default = "127.0.0.1:8440";
    assert!(readme.text.contains(&format!("<http://{default}>")));
    assert!(read("deploy/store.toml")?.contains(&format!("without it: {default}")));
    Ok(())
}

#[test]
fn commands_exist_with_their_options() -> Result<()> {
    for block in blocks("console", 5)? {
        for line in block.text.lines().filter_map(|line| line.strip_prefix("$ ")) {
            let words: Vec<&str> = line.trim_start_matches("sudo ").split(' ').collect();
            // What cargo runs is what stands behind its own words.
            let words = match words.strip_prefix(SERVER_BY_CARGO.as_slice()) {
                Some(rest) => [&["/opt/portcullis/bin/portcullis"], rest].concat(),
                None => words,
            };
            let (program, arguments) = words.split_first().context("an empty command")?;
            if FOREIGN_COMMANDS.contains(program) {
                continue;
            }
            let installed = program.strip_prefix("/opt/portcullis/bin/");
            let path = match installed {
                Some(name) => binaries::find(name)?,
                None => root().join(program),
            };
            let has_subcommands = matches!(installed, Some("monitor" | "portcullis"));
            let subcommand: Vec<&&str> = arguments
                .first()
                .filter(|word| has_subcommands && !word.starts_with('-'))
                .into_iter()
                .collect();
            let help = Command::new(&path).args(&subcommand).arg("--help").output();
            let help = help.with_context(|| format!("{}: {line}", block.place))?;
            assert!(help.status.success(), "{}: {line}", block.place);
            let help = String::from_utf8(help.stdout)?;
            for option in arguments.iter().filter(|word| word.starts_with("--")) {
                assert!(help.contains(option), "{}: {line}: no {option} in\n{help}", block.place);
            }
        }
    }
    Ok(())
}

#[test]
fn the_hooks_variables_are_those_that_are_read() -> Result<()> {
    let hooks = document("docs/hooks.md")?;
    let rows: Vec<&str> = hooks.prose().filter(|line| line.starts_with("| `")).collect();
    let documented = |kind: &str| -> BTreeSet<String> {
        let end = format!("| {kind} |");
        let named = rows.iter().filter(|row| row.ends_with(&end));
        named.filter_map(|row| row.split('`').nth(1)).map(str::to_owned).collect()
    };
    let ContextError { problems } =
        JobContext::from_environment(|_| None).expect_err("nothing is set");
    let required = problems.iter().map(|problem| problem.variable.to_owned()).collect();
    assert_eq!(documented("required"), required);

    let mut read = BTreeSet::new();
    let asked = std::cell::RefCell::new(&mut read);
    let _ = JobContext::from_environment(|name| {
        asked.borrow_mut().insert(name.to_owned());
        None
    });
    let described = documented("describes");
    assert_eq!(described, read.difference(&required).cloned().collect());
    Ok(())
}

#[test]
fn messages_to_look_up_are_messages_of_the_product() -> Result<()> {
    let mut sources = String::new();
    for folder in ["common/src", "monitor/src", "pre-job/src", "post-job/src", "monitor-client/src"]
    {
        append_sources(&root().join(folder), &mut sources)?;
    }
    let messages = document("docs/operations.md")?.table("message");
    assert!(messages.len() > 10, "{messages:?}");
    for message in messages {
        assert!(sources.contains(&message), "no program says {message:?}");
    }
    Ok(())
}

fn append_sources(directory: &Path, sources: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            append_sources(&path, sources)?;
        } else {
            sources.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn a_line_holds_one_sentence() -> Result<()> {
    for document in documents()? {
        for line in document.prose().filter(|line| !line.starts_with('|')) {
            let text: String = line.split('`').step_by(2).collect();
            let ends: Vec<_> = text.match_indices(". ").collect();
            let second = ends.iter().find(|(at, _)| {
                let before = text[..*at].chars().next_back();
                let after = text[at + 2..].chars().next();
                before.is_some_and(|c| c.is_lowercase() || c == ')')
                    && after.is_some_and(char::is_uppercase)
            });
            assert!(second.is_none(), "{}: {line}", document.path.display());
        }
    }
    Ok(())
}

#[test]
fn nothing_tells_of_a_machine_that_it_was_written_on() -> Result<()> {
    let here = root().canonicalize()?.display().to_string();
    for document in documents()? {
        for word in [&here, "/root/", "portcullis-world"] {
            assert!(!document.text.contains(word), "{} has {word}", document.path.display());
        }
    }
    Ok(())
}
