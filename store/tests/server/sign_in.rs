//! People sign in by an OpenID Connect provider.

use crate::on_both;
use crate::support::issuer::{CLIENT, CLIENT_SECRET, Issuer};
use crate::support::{Reply, Server, World, send};
use portcullis_common::store_api::Role;
use portcullis_store::configuration::{Configuration, SignInConfiguration};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, Method, redirect};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use std::collections::BTreeMap;

on_both!(
    groups_become_roles,
    an_answer_that_is_not_this_browsers_is_refused,
    tokens_that_are_not_as_they_must_be_are_refused,
    keys_rotate_and_providers_go_away,
    any_replica_ends_what_another_began,
    a_session_follows_the_provider_and_the_configuration
);

/// The pages are only served when the dashboard was built, which needs Node.js; signing in itself is not.
const BEGIN: &str = "/sign-in/openid-connect";

fn configuration(world: &World, issuer: &Issuer, secret: bool) -> Configuration {
    let file = world.path("client-secret");
    std::fs::write(&file, format!("{CLIENT_SECRET}\n")).unwrap();
    let mut configuration = world.configuration();
    configuration.limits.failed_sign_ins_per_minute = 1000;
    configuration.sign_in = Some(SignInConfiguration {
        issuer: issuer.url(),
        client_id: CLIENT.to_owned(),
        client_secret_file: secret.then_some(file),
        scopes: vec!["email".to_owned(), "groups".to_owned()],
        groups_claim: "groups".to_owned(),
        confirm_minutes: 15,
        roles: BTreeMap::from([
            ("developers".to_owned(), Role::Viewer),
            ("platform".to_owned(), Role::Editor),
            ("security".to_owned(), Role::Admin),
        ]),
    });
    configuration
}

async fn with_provider(world: &World) -> (Server, Issuer) {
    let issuer = Issuer::start().await;
    (world.start_with(configuration(world, &issuer, true)).await, issuer)
}

/// A browser: cookies by name, no redirect followed by itself.
struct Browser {
    client: Client,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    fn new() -> Self {
        let client = Client::builder().redirect(redirect::Policy::none()).build().unwrap();
        Self { client, cookies: BTreeMap::new() }
    }

    async fn get(&mut self, server: &Server, path: &str) -> Reply {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = self.client.get(server.url(path)).header(COOKIE, cookies.join("; "));
        let reply = send(request).await;
        for cookie in reply.headers.get_all(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            // The servers of these tests say that people reach them by HTTPS.
            for needed in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
                assert!(cookie.contains(needed), "{cookie}");
            }
            assert!(cookie.starts_with("__Host-") && !cookie.contains("Domain"), "{cookie}");
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            if cookie.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        reply
    }

    /// Off to the provider; returns the path by which it sends the browser back.
    async fn visit_the_provider(&mut self, server: &Server, next: &str) -> String {
        let away = self.get(server, &format!("{BEGIN}?next={next}")).await;
        assert_eq!(away.status, 303, "{away:?}");
        let back = send(self.client.get(location(&away))).await;
        assert_eq!(back.status, 303, "{back:?}");
        let back = location(&back);
        back.strip_prefix("https://store.test").expect("back to this store").to_owned()
    }

    /// Signs in and returns the callback's answer.
    async fn sign_in(&mut self, server: &Server, next: &str) -> Reply {
        let back = self.visit_the_provider(server, next).await;
        self.get(server, &back).await
    }

    /// Asks for a page whose session has to be confirmed: off to the provider and back; returns the callback's answer.
    async fn confirm(&mut self, server: &Server, path: &str) -> Reply {
        let away = self.get(server, path).await;
        assert!(away.status == 303 && location(&away).contains("prompt=none"), "{away:?}");
        let back = send(self.client.get(location(&away))).await;
        let back = location(&back);
        self.get(server, back.strip_prefix("https://store.test").unwrap()).await
    }

    fn is_signed_in(&self) -> bool {
        self.cookies.contains_key("__Host-portcullis-session")
    }
}

fn location(reply: &Reply) -> String {
    reply.headers[LOCATION].to_str().unwrap().to_owned()
}

/// The newest entries of the audit log about sign-ins.
async fn recorded(server: &Server) -> Vec<Value> {
    let log = server.get("/audit-log?action=session").await.expect(200);
    log["items"].as_array().unwrap().clone()
}

async fn session_of(server: &Server, browser: &Browser) -> Option<(String, Role)> {
    use portcullis_store::database::Caller;
    let secret = browser.cookies.get("__Host-portcullis-session")?;
    let hash = portcullis_store::identity::secret::hash(secret);
    let now = jiff::Timestamp::now().as_millisecond();
    match server.running.store.session(&hash, now).await.unwrap()?.caller {
        Caller::Person { name, role, .. } => Some((name, role)),
        other => panic!("{other:?}"),
    }
}

async fn groups_become_roles(world: World) {
    let (server, issuer) = with_provider(&world).await;
    let page = send(server.anonymous(Method::GET, "/sign-in?next=%2Fruns")).await;
    assert!(page.text.contains("/sign-in/openid-connect?next=%2Fruns"), "{}", page.text);
    let person =
        |groups: Value| json!({ "sub": "1", "email": "ada@example.com", "groups": groups });
    for (groups, role) in [
        (json!(["developers"]), Role::Viewer),
        (json!(["x", "platform", "developers"]), Role::Editor),
        (json!("security"), Role::Admin),
    ] {
        issuer.set_person(person(groups));
        let mut browser = Browser::new();
        let done = browser.sign_in(&server, "%2Fruns%3Fblocked%3Dtrue").await;
        assert_eq!((done.status.as_u16(), location(&done).as_str()), (303, "/runs?blocked=true"));
        let (name, found) = session_of(&server, &browser).await.unwrap();
        assert_eq!((name.as_str(), found), ("ada@example.com", role));
        assert!(!browser.cookies.contains_key("__Host-portcullis-sign-in"), "it is over");
        let entry = &recorded(&server).await[0];
        assert_eq!(entry["action"], "session.begin");
        assert_eq!(entry["actor"], "person:ada@example.com");
        assert_eq!(entry["subject"], format!("person:{} 1", issuer.url()));
    }
    // Groups that only userinfo tells.
    issuer.set_userinfo(json!({ "sub": "2", "groups": ["platform"] }));
    issuer.set_person(json!({ "sub": "2", "preferred_username": "grace" }));
    issuer.twist(json!({}));
    let fresh = world.start_with(configuration(&world, &issuer, true)).await;
    let mut browser = Browser::new();
    browser.sign_in(&fresh, "%2F").await;
    assert_eq!(session_of(&fresh, &browser).await, Some(("grace".to_owned(), Role::Editor)));
    issuer.set_userinfo(json!({ "sub": "another", "groups": ["security"] }));
    let mut browser = Browser::new();
    assert_eq!(browser.sign_in(&fresh, "%2F").await.status, 403);
    fresh.stop().await;
    // Nobody without a group, and nobody who says no.
    for groups in [json!([]), json!(["strangers"]), json!(null)] {
        issuer.set_userinfo(json!({ "sub": "1" }));
        issuer.set_person(person(groups));
        let mut browser = Browser::new();
        let refused = browser.sign_in(&server, "%2F").await;
        assert_eq!(refused.status, 403, "{refused:?}");
        assert!(refused.text.contains("is in no group") && !browser.is_signed_in());
        let entry = &recorded(&server).await[0];
        assert_eq!(
            (&entry["action"], &entry["actor"]),
            (&json!("session.refuse"), &json!("nobody"))
        );
        assert!(entry["detail"].as_str().unwrap().contains("ada@example.com"), "{entry}");
    }
    server.stop().await;
}

async fn an_answer_that_is_not_this_browsers_is_refused(world: World) {
    let (server, issuer) = with_provider(&world).await;
    let refused = async |browser: &mut Browser, path: &str| {
        let reply = browser.get(&server, path).await;
        assert!([400, 403].contains(&reply.status.as_u16()), "{path}: {reply:?}");
        assert!(!browser.is_signed_in(), "{path}");
        assert_eq!(recorded(&server).await[0]["action"], "session.refuse", "{path}");
    };
    // Somebody else's code, sent by a link: signing a victim in as the attacker.
    let mut attacker = Browser::new();
    let link = attacker.visit_the_provider(&server, "%2F").await;
    refused(&mut Browser::new(), &link).await;
    let mut victim = Browser::new();
    victim.visit_the_provider(&server, "%2F").await;
    refused(&mut victim, &link).await;
    // The same answer twice.
    let mut browser = Browser::new();
    let back = browser.visit_the_provider(&server, "%2F").await;
    let kept = browser.cookies.clone();
    assert_eq!(browser.get(&server, &back).await.status, 303);
    let mut replayed = Browser::new();
    replayed.cookies = kept;
    refused(&mut replayed, &back).await;
    // Changed on the way.
    for (from, to) in [("state=", "state=x"), ("code=", "code=x"), ("iss=http", "iss=https")] {
        let mut browser = Browser::new();
        let back = browser.visit_the_provider(&server, "%2F").await;
        refused(&mut browser, &back.replace(from, to)).await;
    }
    // A cookie of nobody, and a code that was got with another verifier.
    let mut browser = Browser::new();
    let back = browser.visit_the_provider(&server, "%2F").await;
    let name = "__Host-portcullis-sign-in";
    let own = browser.cookies[name].clone();
    browser.cookies.insert(name.to_owned(), own.replace(&own[30..40], "AAAAAAAAAA"));
    refused(&mut browser, &back).await;
    let (mut one, mut two) = (Browser::new(), Browser::new());
    let (first, second) = (
        one.visit_the_provider(&server, "%2F").await,
        two.visit_the_provider(&server, "%2F").await,
    );
    let code =
        |path: &str| path.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    refused(&mut one, &first.replace(&code(&first), &code(&second))).await;
    // The provider says no; what it says is shown as text.
    let mut browser = Browser::new();
    let back = browser.visit_the_provider(&server, "%2F").await;
    let state = back.split("state=").nth(1).unwrap().split('&').next().unwrap();
    let no = format!(
        "/sign-in/callback?state={state}&error=access_denied&error_description=%3Cscript%3E"
    );
    let reply = browser.get(&server, &no).await;
    assert!(reply.status == 403 && !reply.text.contains("<script>"), "{reply:?}");
    // Nobody is led away by where the sign-in is to end.
    for next in ["https%3A%2F%2Fevil.test", "%2F%2Fevil.test", "%2F%5Cevil.test"] {
        let mut browser = Browser::new();
        assert_eq!(location(&browser.sign_in(&server, next).await), "/");
    }
    drop(issuer);
    server.stop().await;
}

async fn tokens_that_are_not_as_they_must_be_are_refused(world: World) {
    let (server, issuer) = with_provider(&world).await;
    let now = jiff::Timestamp::now().as_second();
    for twisted in [
        json!({ "nonce": "another" }),
        json!({ "nonce": null }),
        json!({ "aud": "another" }),
        json!({ "aud": [CLIENT, "another"] }),
        json!({ "azp": "another" }),
        json!({ "iss": "https://evil.test" }),
        json!({ "exp": now - 120 }),
        json!({ "exp": null }),
        json!({ "nbf": now + 600 }),
        json!({ "sub": null }),
        json!({ "sub": "" }),
    ] {
        issuer.twist(twisted.clone());
        let mut browser = Browser::new();
        let reply = browser.sign_in(&server, "%2F").await;
        assert_eq!(reply.status, 403, "{twisted}: {reply:?}");
        assert!(!browser.is_signed_in(), "{twisted}");
    }
    // A clock that is a little off is no reason.
    issuer.twist(json!({ "nbf": now + 30, "aud": [CLIENT] }));
    assert_eq!(Browser::new().sign_in(&server, "%2F").await.status, 303);
    // A client whose secret is wrong, and one without a secret.
    issuer.twist(json!({}));
    issuer.make_public();
    assert_eq!(Browser::new().sign_in(&server, "%2F").await.status, 503);
    server.stop().await;
    let public = world.start_with(configuration(&world, &issuer, false)).await;
    assert_eq!(Browser::new().sign_in(&public, "%2F").await.status, 303);
    public.stop().await;
}

async fn keys_rotate_and_providers_go_away(world: World) {
    let (server, issuer) = with_provider(&world).await;
    assert_eq!(Browser::new().sign_in(&server, "%2F").await.status, 303);
    issuer.set_down(true);
    assert_eq!(Browser::new().sign_in(&server, "%2F").await.status, 303, "what is known goes on");
    issuer.set_down(false);
    server.stop().await;
    // The provider signs with a new key, and no longer offers the old one.
    let server = world.start_with(configuration(&world, &issuer, true)).await;
    let mut browser = Browser::new();
    let back = browser.visit_the_provider(&server, "%2F").await;
    issuer.rotate("key-2");
    let asked = issuer.fetches();
    assert_eq!(browser.get(&server, &back).await.status, 303);
    assert_eq!(issuer.fetches(), asked + 1);
    // Keys that nobody knows don't make the store ask again and again.
    for key in ["key-3", "key-4"] {
        let mut browser = Browser::new();
        let back = browser.visit_the_provider(&server, "%2F").await;
        issuer.rotate(key);
        let reply = browser.get(&server, &back).await;
        assert_eq!(reply.status, 403, "{reply:?}");
        assert_eq!(issuer.fetches(), asked + 1);
    }
    server.stop().await;
    issuer.set_down(true);
    let server = world.start_with(configuration(&world, &issuer, true)).await;
    let away = Browser::new().get(&server, BEGIN).await;
    assert!(
        away.status == 503 && away.text.contains("can’t be asked")
            || away.text.contains("be asked"),
        "{away:?}"
    );
    server.stop().await;
    // Without a provider there is nothing to begin.
    let without = world.start().await;
    assert_eq!(Browser::new().get(&without, BEGIN).await.status, 404);
    without.stop().await;
}

async fn any_replica_ends_what_another_began(world: World) {
    let issuer = Issuer::start().await;
    let one = world.start_with(configuration(&world, &issuer, true)).await;
    let two = world.start_with(configuration(&world, &issuer, true)).await;
    let mut browser = Browser::new();
    let back = browser.visit_the_provider(&one, "%2F").await;
    assert_eq!(browser.get(&two, &back).await.status, 303);
    assert!(session_of(&one, &browser).await.is_some(), "the session is everybody's");
    one.stop().await;
    two.stop().await;
}

/// Makes it so many minutes since all sessions were confirmed.
async fn wait(world: &World, minutes: i64) {
    let sql = format!("UPDATE sessions SET confirmed_ms = confirmed_ms - {}", minutes * 60_000);
    let url = world.database_url();
    if url.starts_with("sqlite:") {
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    } else {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    }
}

async fn a_session_follows_the_provider_and_the_configuration(world: World) {
    let (server, issuer) = with_provider(&world).await;
    let groups = |groups: Value| json!({ "sub": "1", "email": "ada@example.com", "groups": groups });
    issuer.set_person(groups(json!(["security", "of no role"])));
    let mut browser = Browser::new();
    browser.sign_in(&server, "%2Fruns").await;
    let session = browser.cookies["__Host-portcullis-session"].clone();
    assert_eq!(browser.get(&server, "/access").await.status, 200);

    // The provider says something else now; the next page asks it, once, and the session goes on with another role.
    issuer.set_person(groups(json!(["developers"])));
    assert_eq!(browser.get(&server, "/access").await.status, 200, "not yet");
    wait(&world, 16).await;
    let asset = browser.client.get(server.url("/runs")).header("sec-fetch-dest", "empty");
    let cookie = format!("__Host-portcullis-session={session}");
    let part = send(asset.header(COOKIE, &cookie)).await;
    assert_eq!(part.status, 200, "what a script asks for is not led away");
    let back = browser.confirm(&server, "/access").await;
    assert_eq!((back.status.as_u16(), location(&back).as_str()), (303, "/access"));
    assert_eq!(browser.cookies["__Host-portcullis-session"], session, "it is the same session");
    assert!(!browser.cookies.contains_key("__Host-portcullis-sign-in"), "it is over");
    assert_eq!(browser.get(&server, "/access").await.status, 403);
    assert_eq!(browser.get(&server, "/runs").await.status, 200);
    assert_eq!(session_of(&server, &browser).await, Some(("ada@example.com".into(), Role::Viewer)));
    assert_eq!(issuer.confirmations(), 1);
    let entry = &recorded(&server).await[0];
    assert_eq!((&entry["action"], &entry["detail"]), (&json!("session.change"), &json!("viewer, was admin")));

    // The provider is away: for a while pages are shown, then nothing is.
    issuer.set_down(true);
    wait(&world, 16).await;
    let fresh = world.start_with(configuration(&world, &issuer, true)).await;
    assert_eq!(browser.get(&fresh, "/runs").await.status, 200);
    wait(&world, 16).await;
    assert_eq!(browser.get(&fresh, "/runs").await.status, 503);
    let part = fresh.url("/runs");
    let part = send(browser.client.get(part).header(COOKIE, &cookie).header("hx-request", "true"));
    assert_eq!(part.await.status, 401);
    issuer.set_down(false);
    browser.confirm(&fresh, "/runs").await;
    assert_eq!(browser.get(&fresh, "/runs").await.status, 200);
    fresh.stop().await;

    // An admin takes the group's role away: that counts at once, without asking.
    let mut changed = configuration(&world, &issuer, true);
    changed.sign_in.as_mut().unwrap().roles.remove("developers");
    let fresh = world.start_with(changed).await;
    assert_eq!(session_of(&fresh, &browser).await, None);
    assert_eq!(location(&browser.get(&fresh, "/runs").await), "/sign-in?next=%2Fruns");
    fresh.stop().await;

    // Who is in no group any more, and who is signed out at the provider, is signed out here.
    for (is_signed_in, told) in [(true, "is in no group"), (false, "login_required")] {
        issuer.set_person(groups(json!(["developers"])));
        let mut browser = Browser::new();
        browser.sign_in(&server, "%2Fruns").await;
        issuer.set_person(groups(json!([])));
        issuer.set_signed_in(is_signed_in);
        wait(&world, 31).await;
        let over = browser.confirm(&server, "/runs").await;
        assert!(over.status == 401 && over.text.contains(told), "{over:?}");
        assert!(!browser.is_signed_in());
        let entry = &recorded(&server).await[0];
        assert_eq!(entry["action"], "session.end");
        assert!(entry["detail"].as_str().unwrap().contains(told), "{entry}");
        assert_eq!(location(&browser.get(&server, "/runs").await), "/sign-in?next=%2Fruns");
    }
    server.stop().await;
}
