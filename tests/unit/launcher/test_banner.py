import json
import shlex

from serve_app.launcher.banner import banner, curl


def test_the_banner_has_one_request_for_each_api_that_a_shell_reads_as_meant() -> None:
    text = banner(port=8123, key="tt_key", model="org/model", status_command="serve status", measurements_port=9)
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("curl")]
    assert [command[2] for command in commands] == [
        "http://127.0.0.1:8123/v1/aitextgen/generate",
        "http://127.0.0.1:8123/v1/models/org/model/generate",
        "http://127.0.0.1:8123/v1/completions",
    ]
    for command in commands:
        assert "Authorization: Bearer tt_key" in command
        assert json.loads(command[command.index("-d") + 1])
    assert "API key: tt_key" in text
    assert "http://127.0.0.1:9/metrics" in text


def test_quotes_in_a_body_survive_the_shell() -> None:
    body = {"prompt": 'it\'s "quoted" $HOME'}
    assert json.loads(shlex.split(curl("http://host/", "key", body))[-1]) == body
