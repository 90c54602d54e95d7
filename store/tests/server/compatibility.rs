//! The read endpoints for clients of the existing action, by their documented form.

use crate::on_both;
use crate::support::issuer::Issuer;
use crate::support::{Reply, Server, World, send};
use reqwest::Method;
use serde_json::json;

on_both!(an_unchanged_client_gets_its_policy);

/// A request as the action sends it, below the root of its API: `{token}` is what it has.
/// The first is made with GitHub's token of the job, the second with the key of its `api-key`.
const RECORDED: [(&str, &str); 2] = [
    (
        "/v1/github/octo/actions/policies/build",
        "authorization: Bearer {token}\nsource: github-actions\nuser-agent: actions/http-client\naccept: application/json",
    ),
    (
        "/v1/github/octo/hello/actions/policies/workflow-policy?workflow=ci.yml&run_id=7&correlationId=3f2c1b9e-7b60-4f0c-9a55-0b6f6d1d2c3a",
        "authorization: vm-api-key {token}\nsource: github-actions\nuser-agent: actions/http-client\naccept: application/json",
    ),
];

/// Sends a recorded request.
async fn replay(server: &Server, (path, headers): (&str, &str), token: &str) -> Reply {
    let mut request = server.anonymous(Method::GET, path);
    for (name, value) in headers.lines().filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value.replace("{token}", token));
    }
    send(request).await
}

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
    assert_eq!(replay(&server, RECORDED[0], &token).await.expect(200), expected);
    assert_eq!(replay(&server, RECORDED[1], &credential).await.expect(200), expected);
    replay(&server, RECORDED[1], "pch_forged").await.problem(401);
    replay(&server, RECORDED[1], &server.token).await.problem(403);

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
    // A token of one workflow is good for no other one of the repository.
    let other = by_workflow.replace("ci.yml", "deploy.yml");
    server.put_policy("deploy", "name: deploy\negress-policy: audit\n").await.expect(201);
    let deploy = json!({ "workflow": "octo/hello/.github/workflows/deploy.yml" });
    server.post("/policies/deploy/attachments", deploy).await.expect(200);
    get(&server, &other, &token).await.problem(403);
    let mut claims = issuer.claims();
    claims["workflow_ref"] = json!("octo/hello/.github/workflows/deploy.yml@refs/heads/main");
    let of_deploy = issuer.token(&claims);
    assert_eq!(get(&server, &other, &of_deploy).await.expect(200)["policy_name"], "deploy");
    get(&server, by_workflow, &of_deploy).await.problem(403);
    // A workflow of another repository that every repository has to run is that other one's.
    claims["workflow_ref"] = json!("octo/rules/.github/workflows/ci.yml@refs/heads/main");
    get(&server, by_workflow, &issuer.token(&claims)).await.problem(404);
    // A policy of a cluster is for hosts of the cluster, and a job's token names no host.
    server.delete("/policies/build/attachments?workflow=octo/hello/.github/workflows/ci.yml").await;
    server.post("/policies/build/attachments", json!({ "cluster": "prod" })).await.expect(200);
    assert_eq!(replay(&server, RECORDED[1], &credential).await.expect(200), expected);
    get(&server, by_workflow, &token).await.problem(404);
    send(server.anonymous(Method::GET, by_name)).await.problem(401);
    send(server.anonymous(Method::GET, by_workflow)).await.problem(401);
    server.stop().await;
}
