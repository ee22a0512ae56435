"""What an operator of real nodes sees: metrics by their own token, an alert, the history."""

from __future__ import annotations

import json
import re
import stat
import sys
import urllib.error
import urllib.request

import pytest

from tests.e2e.conftest import CONFIG, call, wait_for
from xsc.client.core import find_place


def asked(url, token):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def configured(member, line):
    """Give a node that was not started yet a setting; return its home."""
    member.home.mkdir(parents=True, mode=0o700)
    (member.home / "config.toml").write_text(CONFIG.format(member.home.name) + f"{line}\n")
    return member.home


def refused(url, token):
    with pytest.raises(urllib.error.HTTPError) as fault:
        asked(url, token)
    with fault.value:
        return fault.value.code


def test_the_token_of_metrics_opens_nothing_else_and_stays(small_net):
    net = small_net
    home = configured(net[0], 'metrics_listen = "127.0.0.1:0"')
    net.up(1)
    path = home / "metrics.token"
    token, own = path.read_text().strip(), (home / "api.token").read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    place = find_place(home)
    api = f"http://{place.host}:{place.port}"
    (elsewhere,) = re.findall("metrics at (.*)/metrics", (home / "node.log").read_text())
    for url in (api, elsewhere):
        kind, text = asked(f"{url}/metrics", token)
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert "\nxsc_peers_known 0.0\n" in text
        assert refused(f"{url}/metrics", "x") == 401
    assert asked(f"{api}/metrics", own)
    assert refused(f"{api}/v1/status", token) == 401
    for rest in ("/v1/status", "/health", "/v1/proof", "/openapi.json", "/metrics/", "/"):
        assert refused(elsewhere + rest, own) == 404
    net.down()
    net.up()
    assert path.read_text().strip() == token


def test_a_lost_host_is_told_of_once_and_shown_until_acknowledged(small_net, tmp_path):
    net = small_net
    heard = tmp_path / "heard"
    write = f"import sys; open('{heard}', 'a').write(sys.stdin.read() + chr(10))"
    target = json.dumps([f'exec:{sys.executable} -c "{write}"'])
    configured(net[0], f"notify = {target}")
    net.up(6)
    owner = net[0]
    (row,) = owner("node alerts --test --json").json["targets"]
    assert row["taken"]
    assert json.loads(heard.read_text())["kind"] == "test"
    heard.unlink()
    owner.put(b"x" * 100_000)
    rows = [{"name": "node-4"}, {"name": "node-5"}]
    net.kill(rows)
    wait_for(lambda: heard.exists() and heard.read_text().endswith("\n"), 240)
    (line,) = heard.read_text().splitlines()
    said = json.loads(line)
    assert said["kind"] == "margin"
    assert (said["node"], said["name"]) == (owner.id, "node-0")
    shown = owner("node alerts --json").json["alerts"]
    assert [row["id"] for row in shown] == ["margin/"]
    assert "xsc node alerts" in owner("node status").err
    net.up()
    wait_for(lambda: owner("node alerts --json").json["alerts"][0]["over_ms"])
    assert owner("node acknowledge margin/").line == "acknowledged 1 alert"
    assert owner("node alerts").err.strip() == "nothing needs you that you have not acknowledged"
    owner("node acknowledge margin/").fails(2, "not_found")
    assert len(heard.read_text().splitlines()) == 1
    samples = owner("node history --json").json["samples"]
    assert samples[-1]["at_ms"] <= said["since_ms"] + 3_600_000
    assert "node-5" in {row["name"] for row in samples[-1]["peers"]}


def test_notify_is_set_in_the_file_alone(tmp_path):
    for options, env in (("", {"XSC_NOTIFY": "exec:true"}), (" --notify exec:true", {})):
        done = call(f"node start{options}", home=tmp_path / "home", **env)
        done.fails(2, "config_invalid")
        assert "config.toml alone" in done.err
