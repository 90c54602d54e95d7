//! The read endpoints for clients of the existing action, by their documented form.

use crate::on_both;
use crate::support::issuer::Issuer;
use crate::support::{Reply, Server, World, send};
use reqwest::Method;
use serde_json::json;

on_both!(an_unchanged_client_gets_its_policy);

async fn get(server: &Server, path: &str, token: &str) -> Reply {
    send(server.anonymous(Method::GET, path).bearer_auth(token)).await
}

async fn an_unchanged_client_gets_its_policy(world: World) {
    let issuer = Issuer::start().await;
    let mut configuration = world.configuration();
    configuration.github.issuer = issuer.url();
    let server = world.start_with(configuration).await;
    let token = issuer.token(&issuer.claims());
    let by_name = "/v1/github/octo/actions/policies/build";
    let by_workflow =
        "/v1/github/octo/hello/actions/policies/workflow-policy?workflow=ci.yml&run_id=7";
    get(&server, by_name, &token).await.problem(404);
    get(&server, by_workflow, &token).await.problem(404);
    server
        .put_policy("build", "name: build\negress-policy: block\nallowed-endpoints: ['github.com:443', '*.npmjs.org']\ndisable-sudo: true\n")
        .await
        .expect(201);
    let expected = json!({
        "owner": "octo", "policy_name": "build", "egress_policy": "block",
        "allowed_endpoints": ["github.com:443", "*.npmjs.org"], "denied_endpoints": [], "disable_sudo": true,
        "disable_sudo_and_containers": false, "disable_file_monitoring": false, "disable_telemetry": false, "lockdown": false,
    });
    // Anybody on GitHub can have such a token; an owner that nothing is attached to learns nothing.
    get(&server, by_name, &token).await.problem(404);
    get(&server, by_workflow, &token).await.problem(404);
    server
        .post(
            "/policies/build/attachments",
            json!({ "workflow": "octo/hello/.github/workflows/ci.yml" }),
        )
        .await
        .expect(200);
    assert_eq!(get(&server, by_workflow, &token).await.expect(200), expected);
    assert_eq!(get(&server, by_name, &token).await.expect(200), expected);
    let credential = server.enrol("prod").await["credential"].as_str().unwrap().to_owned();
    let by_key =
        send(server.anonymous(Method::GET, by_workflow).header("vm-api-key", &credential)).await;
    assert_eq!(by_key.expect(200), expected);

    for (path, token, status) in [
        ("/v1/github/evil/actions/policies/build", token.as_str(), 403),
        (
            "/v1/github/octo/other/actions/policies/workflow-policy?workflow=ci.yml",
            token.as_str(),
            403,
        ),
        (
            "/v1/github/octo/hello/actions/policies/workflow-policy?workflow=ci.yml&run_id=8",
            token.as_str(),
            403,
        ),
        (by_name, "forged", 403),
        (by_name, server.token.as_str(), 403),
        (by_workflow, "pch_forged", 401),
    ] {
        get(&server, path, token).await.problem(status);
    }
    send(server.anonymous(Method::GET, by_name)).await.problem(401);
    send(server.anonymous(Method::GET, by_workflow)).await.problem(401);
    server.stop().await;
}
