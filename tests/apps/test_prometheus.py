"""A real Prometheus reads the metrics, and its alerts fire and clear."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_for
from xsc.client.core import find_place

ROOT = Path(__file__).parents[2]
RULES = ROOT / "contrib" / "alerts.yml"
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: xsc
    authorization: {{credentials_file: {token}}}
    static_configs: [{{targets: ["{place}"]}}]
"""

if shutil.which("promtool") is None:
    pytest.skip("`apt install prometheus` is needed", allow_module_level=True)


def promtool(*words, stdin=b""):
    return subprocess.run(["promtool", *words], input=stdin, capture_output=True, check=False)


def read(url, token=None):
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as got:
        return got.read()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def prometheus(folder, config):
    (folder / "prometheus.yml").write_text(config)
    url = f"127.0.0.1:{free_port()}"
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *words, f"--web.listen-address={url}"], stdout=log, stderr=log
        )
        try:
            yield f"http://{url}/api/v1"
        finally:
            process.terminate()
            process.wait(20)


def test_the_alerts_are_those_that_their_test_says(tmp_path):
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stderr
    text = (Path(__file__).parent / "alerts.test.yml").read_text()
    (tmp_path / "test.yml").write_text(text.replace("RULES", str(RULES)))
    played = promtool("test", "rules", str(tmp_path / "test.yml"))
    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.timeout(600)
def test_prometheus_scrapes_a_network_and_an_alert_fires_and_clears(small_net, tmp_path):
    net = small_net
    net.up(6)
    owner = net[0]
    owner.put(b"x" * 100_000)
    place, token = find_place(owner.home), (owner.home / "metrics.token").read_text().strip()
    text = read(f"http://{place.host}:{place.port}/metrics", token)
    linted = promtool("check", "metrics", stdin=text)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert not linted.stderr
    # The rules as they are, but that none waits.
    rules = tmp_path / "alerts.yml"
    rules.write_text(
        "\n".join(line for line in RULES.read_text().splitlines() if " for: " not in line)
    )
    config = CONFIG.format(
        rules=rules, token=owner.home / "metrics.token", place=f"{place.host}:{place.port}"
    )
    with prometheus(tmp_path, config) as url:

        def found(expression):
            asked = urllib.parse.urlencode({"query": expression})
            return json.loads(read(f"{url}/query?{asked}"))["data"]["result"]

        def firing():
            told = json.loads(read(f"{url}/alerts"))["data"]["alerts"]
            return {(each["labels"]["alertname"], each["labels"].get("name")) for each in told}

        def answers():
            try:
                return found("xsc_peers_healthy == 5")
            except OSError:
                return False

        wait_for(answers)
        wait_for(lambda: found('xsc_objects{margin="2"} == 1'))
        assert not firing()
        net.kill([{"name": "node-5"}])
        gone = ("XscPeerGone", "node-5")
        wait_for(lambda: gone in firing())
        net.up()
        wait_for(lambda: gone not in firing())
