"""The team's server of examples/server.sh, on a real PostgreSQL and behind nginx: who may do what."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from mlflow.pyfunc import load_model
from mlflow.server import get_app_client

from pipeline.formats.wav import encode_wav
from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment
from pipeline.history.results import Results
from pipeline.kinds import images
from pipeline.kinds.images import make_fields as image_fields
from tests import attacks
from tests.browser import Browser, start_browser
from tests.history.test_mlflow_sync import ABOUT
from tests.history.test_serving import make_generator_of
from tests.servers import ADA, ADMIN, EVE, PASSWORD, Server, start, write_settings
from tests.test_server_routes import TABLE, fill_in

pytestmark = pytest.mark.slow


SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.mark.fault(44)
def test_without_a_login_nothing_is_read_or_written(server: Server) -> None:
    body = {"max_results": 1}
    assert server.post(SEARCH, body, login=False).status_code == 401
    assert server.post("/graphql", {"query": "{ __typename }"}, login=False).status_code == 401
    for path in (
        "/",
        "/api/2.0/mlflow/users/get?username=admin",
        "/ajax-api/2.0/mlflow/users/current",
        "/api/2.0/mlflow-artifacts/artifacts",
    ):
        assert server.get(path, login=False).status_code == 401, path
    assert (
        requests.post(server.address + SEARCH, json=body, auth=("admin", "password1234"), timeout=30).status_code == 401
    )
    assert server.post(SEARCH, body).status_code == 200


@pytest.mark.fault(44)
def test_foreign_hosts_and_origins_are_refused_even_with_a_login(server: Server) -> None:
    body = {"max_results": 1}
    assert server.post(SEARCH, body, Host="evil.example.net").status_code == 403
    assert server.post(SEARCH, body, Origin="https://evil.example.net").status_code == 403
    assert server.post(SEARCH, body, Host="mlflow.example.org").status_code == 200
    assert server.post(SEARCH, body, Origin="https://mlflow.example.org").status_code == 200


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e/etc/passwd",
        "/etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_artifacts(server: Server, path: str) -> None:
    for prefix in ("/api/2.0/mlflow-artifacts/artifacts/", "/get-artifact?run_uuid=0&path=", "/static-files/"):
        answer = server.get(prefix + path)
        assert "root:" not in answer.text
        assert not answer.ok or "<!doctype html>" in answer.text.lower(), (prefix, answer.status_code)
    answer = server.get(f"/api/2.0/mlflow-artifacts/artifacts?path={path}")
    assert "passwd" not in answer.text or not answer.ok


@pytest.fixture(params=["directly", "through the proxy"])
def entrance(request: pytest.FixtureRequest) -> Server:
    """The server itself, then its proxy."""
    found: Server = request.getfixturevalue("server" if request.param == "directly" else "proxy")
    return found


@pytest.mark.parametrize("headers", attacks.FORGED)
def test_no_login_makes_the_server_run_a_command(entrance: Server, headers: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "made by a command"
    with attacks.serve_model(f"touch '{target}'") as model:
        for login in (EVE, ADMIN):
            assert attacks.ask_assistant(entrance.log_in(login, headers), model) == [404] * 4
    assert not target.exists()


def test_no_login_makes_the_server_write_to_a_folder_of_its_choice(entrance: Server, tmp_path: Path) -> None:
    for login in (EVE, ADMIN):
        assert attacks.write_a_file(entrance.log_in(login), tmp_path) == [403] * 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("headers", attacks.FORGED)
def test_no_login_without_rights_reads_users_or_secrets(entrance: Server, headers: dict[str, str]) -> None:
    statuses = attacks.read_secrets(entrance.log_in(EVE, headers))
    assert {path for path, status in statuses.items() if status not in {403, 404}} == set()


def test_another_host_in_the_headers_changes_nothing(entrance: Server) -> None:
    # nginx has one answer for a host that is not its own, the server another.
    for headers in ({"Host": "evil.example.net"}, {"Host": "evil.example.net", "X-Forwarded-Host": "localhost"}):
        statuses = attacks.read_secrets(entrance.log_in(EVE, headers))
        assert set(statuses.values()) <= {403, 404}
    answer = entrance.log_in(EVE, {"X-Forwarded-Host": "evil.example.net"}).send("GET", "/")
    assert answer.ok
    assert "evil" not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc",
        "/etc",
        "https://evil.example.net/x",
        "s3://bucket/x",
        "models:/of the first/1",
        "mlflow-artifacts://127.0.0.1:1/x",
        "mlflow-artifacts:/../x",
        "mlflow-artifacts:/1/x",
        f"runs:/{'0' * 32}/model",
    ],
)
def test_a_model_version_comes_from_a_run_and_from_nowhere_else(server: Server, source: str) -> None:
    client = server.log_in(ADA)
    client.send("POST", "/api/2.0/mlflow/registered-models/create", {"name": "hers"})
    for field in ("source", "Source"):
        answer = client.send("POST", "/api/2.0/mlflow/model-versions/create", {"name": "hers", field: source})
        assert answer.status_code in {400, 403, 404}, answer.text
    body = {"name": "hers", "source": f"models:/m-{'0' * 32}", "runLink": "https://evil.example.net"}
    assert client.send("POST", "/api/2.0/mlflow/model-versions/create", body).status_code == 403
    found = client.send("GET", "/api/2.0/mlflow/model-versions/search")
    assert found.json() == {}


def test_the_administrator_manages_users_and_a_user_changes_only_her_own_password(entrance: Server) -> None:
    name = "grace" if entrance.certificate else "hedy"
    users, login = "/api/2.0/mlflow/users", (name, PASSWORD * 2)
    for path in ("create", "create-ui"):
        body = {"username": "another", "password": PASSWORD}
        assert entrance.log_in(EVE).send("POST", f"{users}/{path}", body).status_code in {403, 404}
    assert entrance.post(f"{users}/create", {"username": name, "password": login[1]}).ok
    client = entrance.log_in(login)
    assert client.send("GET", f"{users}/current").json()["user"]["username"] == name
    assert client.send("PATCH", f"{users}/update-admin", {"username": name, "is_admin": True}).status_code == 403
    body = {"username": "eve", "password": "something else of hers", "current_password": login[1]}
    assert client.send("PATCH", f"{users}/update-password", body).status_code == 403
    body = {"username": name, "password": "something else of hers", "current_password": login[1]}
    assert client.send("PATCH", f"{users}/update-password", body).ok
    assert client.send("GET", f"{users}/current").status_code == 401
    assert entrance.send("PATCH", f"{users}/update-password", {"username": name, "password": login[1]}).ok
    assert client.send("GET", f"{users}/current").ok
    assert entrance.send("DELETE", f"{users}/delete", {"username": name}).ok
    assert client.send("GET", f"{users}/current").status_code == 401


def test_a_granted_permission_lets_a_second_user_write(server: Server) -> None:
    number = server.post("/api/2.0/mlflow/experiments/create", {"name": "shared"}).json()["experiment_id"]
    client, body = server.log_in(EVE), {"experiment_id": number}
    assert client.send("POST", "/api/2.0/mlflow/runs/create", body).status_code == 403
    for place in (f"{number}/x.txt", "x.txt", "x/y.txt", "99/x.txt", f"{int(number) + 1}/x.txt"):
        answer = client.send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{place}", {})
        assert answer.status_code in {403, 404}, place
    grant = {"username": "eve", "resource_type": "experiment", "resource_id": number, "permission": "EDIT"}
    path = "/api/3.0/mlflow/users/permissions/grant"
    assert client.send("POST", path, grant).status_code == 403
    assert server.post(path, grant).ok
    assert client.send("POST", "/api/2.0/mlflow/runs/create", body).ok
    assert server.post("/api/3.0/mlflow/users/permissions/revoke", grant).ok
    assert client.send("POST", "/api/2.0/mlflow/runs/create", body).status_code == 403


def test_every_closed_route_ends_with_404_for_the_administrator_too(entrance: Server) -> None:
    client = entrance.log_in(ADMIN)
    closed = [route for route, who in TABLE.items() if who == "nobody"]
    assert {route for route in closed if client.send(route[0], fill_in(route[1])).status_code != 404} == set()


def test_websockets_are_refused(server: Server) -> None:
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    for path in ("/", "/health", "/ajax-api/3.0/mlflow/assistant/message"):
        assert server.get(path, Connection="Upgrade", Upgrade="websocket", **key).status_code != 101


def test_the_proxy_answers_only_for_its_host_and_only_with_tls(proxy: Server) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(proxy.address.replace("localhost", "127.0.0.1"), timeout=30, verify=str(proxy.certificate))
    body = "x" * (17 << 20)
    assert proxy.post(SEARCH, {"filter": body}).status_code == 413


@pytest.mark.fault(44)
def test_a_training_with_a_login_sends_its_run_and_without_one_keeps_it(
    server: Server, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    record = Record(workdir / "record", ABOUT)
    record.log(1, {"loss": 0.5})
    record.exhibit("samples", 1, ".txt", b"to be")
    record.finish("FINISHED")
    sync = MlflowSync(record)
    sync.finish()
    assert sync.failed
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    sync = MlflowSync(record)
    sync.finish()
    assert not sync.failed
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    assert (run.info.status, run.data.metrics["train/loss"]) == ("FINISHED", 0.5)
    assert [item.path for item in client.list_artifacts(run.info.run_id, "exhibits/samples")] == [
        "exhibits/samples/0000001.txt"
    ]


@pytest.mark.fault(44)
def test_a_second_user_reads_the_runs_of_the_first_and_changes_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert get_app_client("basic-auth", server.address).get_user("ada").username == "ada"
    created = server.post("/api/2.0/mlflow/experiments/create", {"name": "of the first"}).json()
    path, login = f"{server.address}/api/2.0/mlflow/experiments", ADA
    found = requests.get(f"{path}/get", params=created, auth=login, timeout=30)
    assert found.json()["experiment"]["name"] == "of the first"
    assert requests.post(f"{path}/delete", json=created, auth=login, timeout=30).status_code == 403
    assert requests.post(f"{path}/create", json={"name": "of ada"}, auth=login, timeout=30).status_code == 200


def test_no_password_is_in_the_process_list_or_the_log(server: Server) -> None:
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    for text in (listed, server.log.read_text()):
        assert PASSWORD not in text
        assert PASSWORD.replace(" ", "%20") not in text


@pytest.mark.parametrize(
    ("changes", "mode", "message"),
    [
        ({}, 0o600, "MLFLOW_BACKEND_STORE_URI: expected a value of your own"),
        ({}, 0o644, "others can read it"),
        (
            {"MLFLOW_BACKEND_STORE_URI": "x", "MLFLOW_AUTH_ADMIN_PASSWORD": ""},
            0o600,
            "MLFLOW_AUTH_ADMIN_PASSWORD: expected",
        ),
    ],
)
def test_settings_that_are_not_filled_in_or_open_to_others_start_nothing(
    tmp_path: Path, changes: dict[str, str], mode: int, message: str
) -> None:
    settings = write_settings(tmp_path, **changes)
    settings.chmod(mode)
    process = start(settings, tmp_path / "log")
    assert process.wait(timeout=30) == 1
    assert message in (tmp_path / "log").read_text()


# --- what a member of the team needs -------------------------------------------

# Parts of MLflow's interface that this server does not offer: it asks for them, and shows its pages without them.
NOT_OFFERED = (
    "/ajax-api/3.0/mlflow/assistant/",
    "/ajax-api/3.0/mlflow/ui-telemetry",
)

# The element that plays a sound, in the document or in the shadow of one of its elements.
PLAYER = """(function find(root) {
    const inner = [...root.querySelectorAll("*")].filter(each => each.shadowRoot).map(each => find(each.shadowRoot));
    return root.querySelector("audio") || inner.find(Boolean);
})(document)"""


@pytest.fixture(scope="module")
def sent(proxy: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Send a small run with its model through the proxy, as ada; return its experiment and its id."""
    folder = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(proxy.certificate))
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADA[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADA[1])
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "of ada")
        record = Record(folder / "record", ABOUT | {"environment": describe_environment()})
        for step in range(1, 20):
            record.log(step, {"loss": 1 / step, "validation/loss": 2 / step})
        record.log_load({"cpu_utilization_percentage": 50.0})
        picture = images.show("samples", torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), None)
        record.exhibit("samples", 3, picture.suffix, picture.content)
        record.exhibit("poem", 3, ".txt", b"to be")
        tone = (8000 * np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000)).astype(np.int16)
        record.exhibit("tone", 3, ".wav", encode_wav(tone, 8000))
        record.finish("FINISHED", seconds=1.0)
        make_generator_of("gan", image_fields((3, 16, 16), 2), folder / "model")
        for _ in range(2):  # the second is what `pipeline sync` does
            sync = MlflowSync(record)
            sync.finish(Results({"fid": 3.0}, tags={"protocol": "p"}), model=folder / "model")
            assert not sync.failed
        client, experiment = connect()
        assert len(client.search_runs([experiment])) == 1
        (model,) = client.search_logged_models([experiment])
        assert len(load_model(f"models:/{model.model_id}").predict([0])[0]) > 100
        client.create_registered_model("digits")
        client.create_model_version("digits", f"models:/{model.model_id}", model_id=model.model_id)
        return experiment, sync.run_id


def check_answers(browser: Browser, proxy: Server) -> None:
    """Assert that the pages' requests stay at the server, and that only what it does not offer was refused."""
    answers = [answer for answer in browser.list_answers() if answer.url.startswith(("http", "ws"))]
    assert [answer for answer in answers if not answer.url.startswith(f"{proxy.address}/")] == []
    refused = [answer for answer in answers if answer.status >= 400]
    needed = [answer for answer in refused if not answer.url.removeprefix(proxy.address).startswith(NOT_OFFERED)]
    assert needed == []


def test_the_interface_shows_runs_charts_pictures_and_models_and_nothing_that_it_needs_is_refused(
    proxy: Server, sent: tuple[str, str], tmp_path: Path
) -> None:
    experiment, run = sent
    files = proxy.get(f"/api/2.0/mlflow/artifacts/list?run_id={run}&path=images").json()["files"]
    picture = next(file["path"] for file in files if file["path"].endswith(".png"))
    with start_browser(ADA) as browser:

        def show(name: str, path: str, *words: str, until: str = "true") -> None:
            browser.open(f"{proxy.address}/#/{path}")
            browser.wait_for(*words)
            browser.wait_until(until)
            browser.settle()
            browser.save_picture(tmp_path / f"{name}.png")
            check_answers(browser, proxy)

        page = f"experiments/{experiment}"
        show("experiments", "experiments", "of ada")
        show("overview", page, "of ada", "Overview")
        show("runs", f"{page}/runs", "Training runs", "gan")
        drawn = "document.querySelectorAll('.js-plotly-plot .trace').length"
        show("charts", f"{page}/runs?compareRunsMode=CHART", "quality/fid", "train", until=drawn)
        show("run", f"{page}/runs/{run}", "train/loss", "quality/fid", "cost/seconds", "protocol")
        show("metrics", f"{page}/runs/{run}/model-metrics", "cpu_seconds", "quality", until=drawn)
        show("system", f"{page}/runs/{run}/system-metrics", "cpu_utilization_percentage")
        seen = "[...document.images].some(i => i.src.startsWith('blob:') && i.naturalWidth > 30)"
        show("picture", f"{page}/runs/{run}/artifacts/{picture}", "images", until=seen)
        show("models", f"{page}/models", "model", "gan")
        # After another page: a second file's address alone does not change what the page of files shows.
        show("text", f"{page}/runs/{run}/artifacts/exhibits/poem/0000003.txt", "to be")
        model = proxy.post("/api/2.0/mlflow/logged-models/search", {"experiment_ids": [experiment]}).json()["models"][0]
        show("model", f"{page}/models/{model['info']['model_id']}", "Source run", "gan")
        show("registry", "models", "digits", "Version 1")
        show("version", "models/digits/versions/1", "digits", "Version 1")
        show("sound", f"{page}/runs/{run}/artifacts/exhibits/tone/0000003.wav", "exhibits", until=PLAYER)
        browser.command("Runtime.evaluate", expression=f"{PLAYER}.play()", userGesture=True)
        browser.wait_until(f"{PLAYER}.currentTime > 0.2")
