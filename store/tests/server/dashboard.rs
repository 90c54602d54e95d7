//! The dashboard: who may see what, sessions, forged forms; and in a browser, everything that people do with it.

use crate::on_both;
use crate::support::browser::installed;
use crate::support::{Backend, Server, World, run};
use portcullis_common::store_api::Role;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, Method, Response, redirect};
use std::path::Path;
use std::process::{Command, Stdio};

on_both!(pages_ask_for_a_session_and_a_role, sessions_end);

/// A browser that follows no redirects by itself.
fn client() -> Client {
    Client::builder().redirect(redirect::Policy::none()).build().unwrap()
}

async fn post(
    server: &Server,
    path: &str,
    cookie: Option<&str>,
    form: &[(&str, &str)],
) -> Response {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut request = client().post(server.url(path)).body(body);
    if let Some(cookie) = cookie {
        request = request.header(COOKIE, cookie);
    }
    request.send().await.unwrap()
}

pub async fn get(server: &Server, path: &str, cookie: Option<&str>) -> Response {
    let mut request = client().get(server.url(path));
    if let Some(cookie) = cookie {
        request = request.header(COOKIE, cookie);
    }
    request.send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Signs in, and returns the cookie as it is sent back.
pub async fn sign_in(server: &Server, token: &str) -> String {
    let response = post(server, "/sign-in", None, &[("token", token), ("next", "/runs")]).await;
    assert_eq!((response.status().as_u16(), header(&response, LOCATION.as_str())), (303, "/runs"));
    let cookie = header(&response, SET_COOKIE.as_str());
    // The public address of the tests' server is HTTPS.
    assert!(cookie.starts_with("__Host-portcullis-session=pcs_"), "{cookie}");
    for attribute in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Secure", "; Max-Age=43200"] {
        assert!(cookie.contains(attribute), "{attribute} in {cookie}");
    }
    cookie.split(';').next().unwrap().to_owned()
}

/// The proof in a page's forms.
fn proof(html: &str) -> String {
    let (_, rest) = html.split_once("name=\"proof\" value=\"").expect("a form");
    rest.split('"').next().unwrap().to_owned()
}

async fn pages_ask_for_a_session_and_a_role(world: World) {
    let server = world.start().await;
    server.put_policy("none", "name: none\negress-policy: audit\n").await.expect(201);
    let cookies = [
        (Role::Viewer, sign_in(&server, &server.token("viewer").await).await),
        (Role::Editor, sign_in(&server, &server.token("editor").await).await),
        (Role::Admin, sign_in(&server, &server.token.clone()).await),
    ];
    let html = get(&server, "/policies", Some(&cookies[0].1)).await.text().await.unwrap();
    let viewers_proof = proof(&html);
    assert!(server.running.pages.len() > 30, "all pages are listed");
    for page in &server.running.pages {
        // Signing in has tests of its own.
        if page.path.starts_with("/sign-in") {
            assert_eq!(page.role, None, "{}", page.path);
            continue;
        }
        let path = page.path.replace("{name}", "none").replace("{id}", "none");
        let name = format!("{} {}", page.method, page.path);
        let method: Method = page.method.parse().unwrap();
        let needed = page.role.unwrap_or_else(|| panic!("{name} needs nobody to be signed in"));
        let anonymous = if method == Method::GET {
            get(&server, &path, None).await
        } else {
            post(&server, &path, None, &[("proof", &viewers_proof)]).await
        };
        assert_eq!(anonymous.status(), 303, "{name}");
        assert!(header(&anonymous, LOCATION.as_str()).starts_with("/sign-in"), "{name}");
        for (role, cookie) in &cookies {
            if method == Method::POST {
                let forged = post(&server, &path, Some(cookie), &[("version", "1")]).await;
                assert_eq!(forged.status(), 403, "{name} as {role} without a proof");
                continue;
            }
            let response = get(&server, &path, Some(cookie)).await;
            let status = response.status().as_u16();
            assert_eq!(status != 403, role.allows(needed), "{name} as {role}: {status}");
            assert!(status < 500, "{name} as {role}: {status}");
            assert!(header(&response, "content-security-policy").contains("script-src 'self';"));
        }
    }
    // A proof is of one session: an editor's form does nothing for an admin's cookie.
    let delete = "/policies/none/delete";
    let form = [("proof", viewers_proof.as_str()), ("version", "1")];
    assert_eq!(post(&server, delete, Some(&cookies[2].1), &form).await.status(), 403);
    assert_eq!(post(&server, delete, Some(&cookies[0].1), &form).await.status(), 403, "a viewer");
    server.get("/policies/none").await.expect(200);
    let html = get(&server, "/policies", Some(&cookies[1].1)).await.text().await.unwrap();
    let form = [("proof", proof(&html)), ("version", "1".to_owned())];
    let form: Vec<(&str, &str)> = form.iter().map(|(key, value)| (*key, value.as_str())).collect();
    assert_eq!(post(&server, delete, Some(&cookies[1].1), &form).await.status(), 303);
    server.get("/policies/none").await.problem(404);
    // Sessions are no credentials of the API, and runners are no people.
    let api = client().get(server.url("/api/v1/policies")).header(COOKIE, &cookies[2].1);
    assert_eq!(api.send().await.unwrap().status(), 401);
    let runner = server.enrol("prod").await["credential"].as_str().unwrap().to_owned();
    assert_eq!(post(&server, "/sign-in", None, &[("token", &runner)]).await.status(), 403);
    server.stop().await;
}

async fn sessions_end(world: World) {
    let server = world.start().await;
    let token = server.token("viewer").await;
    let cookie = sign_in(&server, &token).await;
    assert_eq!(get(&server, "/runs", Some(&cookie)).await.status(), 200);
    // Also on another server of the same database, and after a restart.
    server.stop().await;
    let server = world.start().await;
    let html = get(&server, "/runs", Some(&cookie)).await.text().await.unwrap();
    let out = post(&server, "/sign-out", Some(&cookie), &[("proof", &proof(&html))]).await;
    assert!(header(&out, SET_COOKIE.as_str()).contains("Max-Age=0"));
    assert_eq!(get(&server, "/runs", Some(&cookie)).await.status(), 303, "a copy of the cookie");
    for wrong in ["__Host-portcullis-session=pcs_x", "__Host-portcullis-session=", "x"] {
        assert_eq!(get(&server, "/runs", Some(wrong)).await.status(), 303);
    }
    server.stop().await;
}

/// The text of an element as it is copied.
fn text_of(html: &str, id: &str) -> String {
    let (_, rest) = html.split_once(&format!("id=\"{id}\"")).expect(id);
    let (_, rest) = rest.split_once('>').unwrap();
    let text = rest.split("</code>").next().unwrap();
    [("&#60;", "<"), ("&lt;", "<"), ("&#39;", "'"), ("&#38;", "&"), ("&amp;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, character)| text.replace(escaped, character))
}

/// The command that the page of installation shows enrols a host when it is pasted, as it stands there.
#[test]
fn the_command_of_the_page_enrols() {
    run(Backend::Sqlite, async |world: World| {
        let server = world.start().await;
        let cookie = sign_in(&server, &server.token.clone()).await;
        let html = get(&server, "/install", Some(&cookie)).await.text().await.unwrap();
        let proof = proof(&html);
        let form = [
            ("proof", proof.as_str()),
            ("kind", "vm"),
            ("cluster", "lab"),
            ("hosts", "1"),
            ("hours", "1"),
        ];
        let made = post(&server, "/install", Some(&cookie), &form).await;
        let command = text_of(&made.text().await.unwrap(), "command-enrol");
        assert!(
            command.starts_with("sudo portcullis enrol --server https://store.test host"),
            "{command}"
        );
        // The test's server has no name, and the machine's own credential is left alone.
        let command = command.replace("https://store.test", &server.url(""));
        let kept = world.path("credential");
        let script = format!(
            "sudo() {{ \"$@\"; }}\nportcullis() {{ '{}' \"$@\" --credential-file '{}'; }}\n{command}\n",
            env!("CARGO_BIN_EXE_portcullis"),
            kept.display()
        );
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || shell.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("is enrolled in cluster lab"), "{said}");
        let hosts = server.get("/hosts").await.expect(200);
        assert_eq!(hosts["items"][0]["cluster"], "lab");
        let credential: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        assert_eq!(credential["host_id"], hosts["items"][0]["id"]);
        server.stop().await;
    });
}

/// Everything that people do with it: each page and each action, from the click to the API to the database.
#[test]
fn in_a_browser() {
    let place = installed(Path::new(env!("CARGO_TARGET_TMPDIR")));
    run(Backend::Sqlite, async |world: World| {
        let mut configuration = world.configuration();
        // A browser and a seed at once come from one address.
        configuration.limits.requests_per_second = 2000;
        configuration.limits.burst = 20_000;
        // A browser takes cookies with `Secure` by HTTPS; the other tests look at those.
        configuration.public_url = "http://127.0.0.1".to_owned();
        // The suite receives notifications itself, and is not kept waiting for those that it refuses.
        configuration.notifications.allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
        configuration.notifications.allow_http = true;
        configuration.notifications.retry_seconds = vec![0];
        let server = world.start_with(configuration).await;
        // At its end the suite has asked for every page, and sent every form.
        let pages: Vec<String> = server
            .running
            .pages
            .iter()
            .filter(|page| !page.path.starts_with("/sign-in/"))
            .map(|page| format!("{} {}", page.method, page.path))
            .collect();
        let mut suite = Command::new("node");
        suite.arg("suite.mjs").arg(server.url("")).arg(&server.token).current_dir(&place);
        suite.env("PORTCULLIS_PAGES", pages.join("\n"));
        suite.stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || suite.output()).await.unwrap();
        let output =
            output.expect("node is needed; scripts/test installs it (scripts/test-packages.txt)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("all is well"), "{text}");
        server.stop().await;
    });
}
