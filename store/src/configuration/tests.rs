use super::Configuration;

#[test]
fn a_sign_in_that_nobody_could_use_is_refused() {
    let with = |more: &str| {
        let text = format!(
            "public-url = \"https://store.test\"\n[sign-in]\nclient-id = \"portcullis\"\n{more}"
        );
        let configuration: Configuration =
            toml::from_str(&text).map_err(|error| error.to_string())?;
        configuration.check().map_err(|error| error.to_string())
    };
    let good = "issuer = \"https://login.test\"\n[sign-in.roles]\nops = \"admin\"\n";
    assert_eq!(with(good), Ok(()));
    for (bad, expected) in [
        ("issuer = \"http://login.test\"\n[sign-in.roles]\nops = \"admin\"\n", "https://"),
        ("issuer = \"https://login.test\"\n[sign-in.roles]\n", "nobody could sign in"),
        ("issuer = \"https://login.test\"\n[sign-in.roles]\nops = \"runner\"\n", "for hosts"),
        (
            "issuer = \"https://login.test\"\n[sign-in.roles]\nops = \"root\"\n",
            "unknown variant",
        ),
        ("issuer = \"https://login.test\"\n", "roles"),
        (
            "issuer = \"https://login.test\"\nconfirm-minutes = 0\n[sign-in.roles]\nops = \"admin\"\n",
            "1 to 1440",
        ),
    ] {
        let error = with(bad).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_documented_example_is_read() {
    let text = include_str!("../../../docs/examples/store.toml");
    let configuration: Configuration = toml::from_str(text).unwrap();
    configuration.check().unwrap();
    assert_eq!(configuration.audience(), "https://portcullis.example.com");
}

#[test]
fn what_is_shown_elsewhere_is_read_too() {
    let guide = include_str!("../../../docs/store.md");
    let blocks =
        guide.split("```toml store\n").skip(1).filter_map(|rest| rest.split("```").next());
    let manifest = include_str!("../../../deploy/kubernetes/store/configuration.yaml");
    let manifest: serde_json::Value = serde_saphyr::from_str(manifest).unwrap();
    let manifest = manifest["data"]["store.toml"].as_str().unwrap().to_owned();
    let installed = include_str!("../../../deploy/store.toml").to_owned();
    // Lines that are commented out are there to be used.
    let is_key =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let is_setting = |line: &&str| {
        line.starts_with('[') || line.split_once(" = ").is_some_and(|(name, _)| is_key(name))
    };
    let wanted: String = installed
        .lines()
        .map(|line| line.strip_prefix("# ").filter(is_setting).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let texts: Vec<String> =
        blocks.map(str::to_owned).chain([manifest, installed, wanted]).collect();
    assert!(texts.len() >= 4);
    for text in texts {
        let configuration: Configuration =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        configuration.check().unwrap_or_else(|error| panic!("{error}: {text}"));
    }
}

#[test]
fn documented_parts_are_read() {
    let text = include_str!("../../../docs/notifications.md");
    let parts: Vec<&str> = text.split("```toml store\n").skip(1).collect();
    assert_eq!(parts.len(), 2);
    for part in parts {
        let part = part.split("```").next().unwrap();
        let configuration: Configuration = toml::from_str(part).unwrap();
        configuration.check().unwrap();
    }
    // What is said to be the default is the default.
    let defaults = Configuration::default().notifications;
    assert!(text.contains(&format!("retry-seconds = {:?}", defaults.retry_seconds)));
    assert!(text.contains(&format!("timeout-seconds = {}", defaults.timeout_seconds)));
}

#[test]
fn tokens_never_cross_the_network_in_the_clear() {
    let open =
        Configuration { listen: "0.0.0.0:80".parse().unwrap(), ..Configuration::default() };
    let error = open.check().unwrap_err().to_string();
    assert!(error.contains("[tls]"), "{error}");
    Configuration::default().check().unwrap();
}
